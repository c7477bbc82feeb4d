"""Which positions of a sequence are steered: policies over absolute positions.

A position is a token's place among the attended tokens of its row, counted from 0 over prompt and answer, so it does
not depend on padding, on the KV cache, or on how the prompt was cut into forwards. Pads are never steered.

Shapes: R rows, T tokens of one forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("all", "prompt", "generated", "text", "image", "custom")


@dataclass(frozen=True)
class Step:
    """The columns of one decoder forward, all on the CPU.

    start: column (with padding) of its first token; positions_RT: position of each token, -1 before a row's first
    attended token; attended_RT: false on pads; image_RT: true on image tokens, None where ids are unknown; prompt_R:
    attended prompt tokens of each row; copies: rows per sample (beams, return sequences); only_generated: every token
    was generated, so that the masks need not be looked at.
    """

    start: int
    positions_RT: Tensor
    attended_RT: Tensor
    image_RT: Tensor | None
    prompt_R: Tensor
    copies: int = 1
    only_generated: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.positions_RT.shape[0], self.positions_RT.shape[1]


@dataclass(frozen=True, eq=False)
class PositionPolicy:
    """A rule that says which attended positions are steered.

    kind: all; prompt; generated (position >= prompt length, so the first new token, which is predicted at the last
    prompt position, comes from an unsteered state); last (the last `last` prompt positions, and everything generated);
    text (all but image tokens); image; custom (`mask`, true where steered, laid out as the attention mask; columns
    beyond it are not steered).
    """

    kind: str
    last: int = 0
    mask: Tensor | None = None

    @classmethod
    def parse(cls, policy: str | Tensor | PositionPolicy) -> PositionPolicy:
        """From "all", "prompt", "generated", "last-1", "last-2", ..., "text", "image", or a boolean mask (B, T).

        Raises:
            ValueError: another word, last-0, or a mask that is not boolean or has not two axes.
        """
        if isinstance(policy, PositionPolicy):
            return policy
        if isinstance(policy, Tensor):
            if policy.dtype != torch.bool or policy.ndim != 2:
                raise ValueError(f"a custom mask is boolean (rows, columns), not {policy.dtype} {tuple(policy.shape)}")
            return cls("custom", mask=policy.detach().cpu())
        if policy in KINDS and policy != "custom":
            return cls(policy)
        head, _, number = str(policy).partition("-")
        if head == "last" and number.isdigit() and int(number) > 0:
            return cls("last", last=int(number))
        raise ValueError(
            f"positions {policy!r}: expected all, prompt, generated, text, image, last-1, last-2, ... or a boolean mask"
        )

    def __str__(self) -> str:
        return f"last-{self.last}" if self.kind == "last" else self.kind

    @property
    def needs_ids(self) -> bool:
        return self.kind in ("text", "image")

    @property
    def needs_prompt(self) -> bool:
        """Whether the rule speaks of where the prompt ends."""
        return self.kind in ("prompt", "generated", "last")

    def steered(self, step: Step) -> Tensor | bool:
        """Boolean (R, T) on the CPU; plain True or False where every token is, or none.

        Raises:
            ValueError: the rule needs token ids and the forward has none, or a custom mask has other rows.
        """
        if step.only_generated and self.kind != "custom":
            return self.kind in ("all", "generated", "last", "text")
        if self.kind == "all":
            chosen = torch.ones_like(step.attended_RT)
        elif self.kind == "prompt":
            chosen = step.positions_RT < step.prompt_R[:, None]
        elif self.kind == "generated":
            chosen = step.positions_RT >= step.prompt_R[:, None]
        elif self.kind == "last":
            chosen = step.positions_RT >= step.prompt_R[:, None] - self.last
        elif self.kind == "custom":
            chosen = self._columns(step)
        elif step.image_RT is None:
            raise ValueError(f"positions {self.kind!r} need input_ids to tell image tokens from text; pass input_ids")
        else:
            chosen = step.image_RT if self.kind == "image" else ~step.image_RT
        chosen = chosen & step.attended_RT
        return chosen if chosen.any() and not chosen.all() else bool(chosen.any())

    def _columns(self, step: Step) -> Tensor:
        """The part of a custom mask that covers this forward; false beyond it."""
        rows, length = step.shape
        if len(self.mask) not in (1, rows // step.copies) or rows % step.copies:
            raise ValueError(f"the custom mask has {len(self.mask)} rows, the batch {rows // step.copies}")
        mask = self.mask if len(self.mask) == 1 else self.mask.repeat_interleave(step.copies, dim=0)
        part = mask[:, step.start : step.start + length]
        chosen = torch.zeros(rows, length, dtype=torch.bool)
        chosen[:, : part.shape[1]] = part
        return chosen
