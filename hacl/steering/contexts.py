"""Reading the states of an unsteered prompt that a method's vectors depend on.

Shapes: B samples, R rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from hacl.steering.positions import Step
from hacl.steering.steerer import ContextSpec


class _Enough(Exception):
    """Every state that was asked for has been read; the rest of the forward is not needed."""


def pool(h_RTD: Tensor, spec: ContextSpec, step: Step) -> Tensor:
    """The state `spec` names, of every sample: fp32 (B, D) from the rows (R, T, D) of one forward.

    step: the columns of that forward; copies of a sample (beams) are alike, the first is read.

    Raises:
        ValueError: ids are needed and unknown, or a sample has no such token.
    """
    states = h_RTD[:: step.copies].float()
    attended = step.attended_RT[:: step.copies]
    positions, lengths = step.positions_RT[:: step.copies], step.prompt_R[:: step.copies]
    if spec.token == "last_prompt":
        chosen = attended & (positions == lengths[:, None] - 1)
    else:
        chosen = attended & (positions < lengths[:, None])
        if spec.token in ("mean_text", "mean_image"):
            if step.image_RT is None:
                raise ValueError(
                    f"context {spec.token!r} needs input_ids to tell image tokens from text; pass input_ids"
                )
            image = step.image_RT[:: step.copies]
            chosen = chosen & (image if spec.token == "mean_image" else ~image)
    count = chosen.sum(1)
    if not count.all():
        raise ValueError(f"context {spec.token!r}: row {int((count == 0).nonzero()[0])} of the batch has no such token")
    if spec.token == "last_prompt":
        column = chosen.int().argmax(1).to(states.device)
        return states[torch.arange(len(states), device=states.device), column]
    weights = (chosen / count[:, None]).to(states)
    return torch.einsum("bt,btd->bd", weights, torch.where(weights[..., None] > 0, states, 0.0))


def read_contexts(
    run: Callable[[], object], blocks: Sequence[nn.Module], specs: Iterable[tuple[ContextSpec, int]], step: Step
) -> dict[ContextSpec, Tensor]:
    """Run a forward no further than the deepest block that is read: {spec: fp32 (B, D)}.

    run: makes the forward; specs: with the index of each one's block; step: its columns.
    """
    specs = list(specs)
    deepest = max(index for _, index in specs)
    found: dict[ContextSpec, Tensor] = {}

    def reader(index: int):
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            h_RTD = output[0] if isinstance(output, tuple) else output
            found.update({spec: pool(h_RTD, spec, step) for spec, at in specs if at == index})
            if index == deepest:
                raise _Enough

        return hook

    handles = [blocks[index].register_forward_hook(reader(index)) for index in {index for _, index in specs}]
    try:
        run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
