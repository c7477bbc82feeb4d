"""Where a model is in its sequences: which columns each decoder forward computes, and where the prompt ended.

One tracker per model serves all its sessions. It watches three places: `generate` (by shadowing the method on the
instance), the model's forward (for token ids, where a session asks for them) and the decoder's forward (for mask and
cache). The first forward of a `generate` fixes the prompt; the length of a forward is never used to guess the phase.

Shapes: B samples, R rows, T tokens of one forward, S columns so far.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hacl.representations.parts import Parts
from hacl.steering.decoding import GenerateCall, read_call
from hacl.steering.positions import Step


class Listener(Protocol):
    """What a tracker tells a session."""

    needs_ids: bool

    def before_generate(self, call: GenerateCall) -> None: ...
    def goes_on(self, length: int) -> bool: ...
    def begin(self, rows: int, samples: int | None) -> None: ...
    def before_forward(self, step: Step, prompt_known: bool, kwargs: dict[str, Any]) -> None: ...


class Tracker:
    """Follows one model while at least one session is open on it."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.sessions: list[Listener] = []
        self.running = False  # inside a forward of the decoder that sessions were told of
        self.muted = False
        self._call: GenerateCall | None = None
        self._sequence: Sequence | None = None
        self._ids: Tensor | None = None
        self._handles: list = []
        self._given_RT: Tensor | None = None  # see `attending`
        self._reader: Any = None  # the hook that looks at token ids, where a session asks for them

    @classmethod
    def of(cls, parts: Parts) -> Tracker:
        """The tracker that sessions on this model already share, or a new one."""
        return getattr(parts.model.__dict__.get("generate"), "tracker", None) or cls(parts)

    def attach(self, session: Listener) -> None:
        if not self.sessions:
            self._install()
        self.sessions.append(session)
        if session.needs_ids and self._reader is None:
            self._reader = self.parts.model.register_forward_pre_hook(self._note_ids, with_kwargs=True)
            self._handles.append(self._reader)

    def detach(self, session: Listener) -> None:
        self.sessions.remove(session)
        if not self.sessions:
            self._remove()

    @contextlib.contextmanager
    def mute(self) -> Iterator[None]:
        """Inside, forwards are the unsteered model's and are not followed."""
        before, self.muted = self.muted, True
        try:
            yield
        finally:
            self.muted = before

    @contextlib.contextmanager
    def attending(self, mask_RT: Tensor) -> Iterator[None]:
        """Inside, tokens of a forward are there where `mask_RT` (R, T) is true, whatever mask the decoder gets: it may
        be one of the family's own, which says what each token sees."""
        before, self._given_RT = self._given_RT, mask_RT
        try:
            yield
        finally:
            self._given_RT = before

    def _install(self) -> None:
        model, decoder = self.parts.model, self.parts.decoder
        foreign = model.__dict__.get("generate")
        original = model.generate

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            return self._generate(original, args, kwargs)

        generate.tracker, generate.foreign = self, foreign
        model.generate = self._shadow = generate
        self._handles = [
            decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            decoder.register_forward_hook(self._after_decoder, always_call=True),
        ]

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._sequence, self._reader, self.running = [], None, None, False
        model = self.parts.model
        if model.__dict__.get("generate") is self._shadow:
            del model.__dict__["generate"]
            if self._shadow.foreign is not None:
                model.__dict__["generate"] = self._shadow.foreign

    def _generate(self, original, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.muted or not self.sessions:
            return original(*args, **kwargs)
        if self._call is not None:
            raise RuntimeError("generate is already running on this steered model; run calls one after the other")
        self._call = call = read_call(self.parts.model, args, kwargs)
        try:
            for session in self.sessions:
                session.before_generate(call)
            return original(*args, **kwargs)
        finally:
            self._call = self._sequence = self._ids = None

    def _note_ids(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._ids = None if self.muted else kwargs.get("input_ids", args[0] if args else None)

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.muted:
            return
        if args:  # the first argument of every decoder
            kwargs = {"input_ids": args[0], **kwargs}
        embeds = kwargs.get("inputs_embeds")
        tokens = embeds if embeds is not None else kwargs.get("input_ids")
        rows, length = tokens.shape[:2]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask = kwargs.get("attention_mask") if self._given_RT is None else self._given_RT
        ids, self._ids = self._prompt_ids(past, length) if self._ids is None else self._ids, None
        if self._is_new(rows, past, cache):
            self._sequence = self._begin(rows, past, length, mask)
            for session in self.sessions:
                session.begin(rows, None if self._call is None else self._call.samples)
        sequence, self.running = self._sequence, True
        if sequence.call is not None and past >= sequence.columns:
            for session in self.sessions:
                if not session.goes_on(length):
                    session.before_forward(sequence.step(past, length), True, kwargs)
            return
        if sequence.call is None:
            sequence.attend(past, length, mask)
        images = self.parts.image_token_id  # without one, no token is of an image
        if images is not None and past < sequence.columns and any(session.needs_ids for session in self.sessions):
            sequence.see(ids, past, length, images)
        step = sequence.step(past, length)
        for session in self.sessions:
            session.before_forward(step, sequence.prompt_known, kwargs)

    def _prompt_ids(self, past: int, length: int) -> Tensor | None:
        """Those of a prompt whose `generate` goes past the model's own forward, as the Q-Former models' does."""
        ids = None if self._call is None else self._call.inputs["input_ids"]
        if ids is None or past + length > ids.shape[1]:
            return None
        return ids[:, past : past + length].repeat_interleave(self._call.copies, dim=0)

    def _after_decoder(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.muted:
            return
        self.running = False
        if self._call is not None or self._sequence is None:
            return
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            self._sequence.cache = weakref.ref(cache)

    def _is_new(self, rows: int, past: int, cache: Any) -> bool:
        if self._call is not None:
            started, self._call.started = self._call.started, True
            return not started
        sequence = self._sequence
        same = sequence is not None and sequence.rows == rows and sequence.cache is not None
        return past == 0 or not same or sequence.cache() is not cache or sequence.length < past

    def _begin(self, rows: int, past: int, length: int, mask: Any) -> Sequence:
        """A sequence at its first forward. Raises ValueError where masks and lengths disagree."""
        call = self._call
        if call is None:
            attended = _columns(mask, rows, 0, past + length)
            return Sequence(attended[:, :past], past + length, prompt_known=past == 0)
        if rows != call.samples * call.copies:
            raise ValueError(f"{call.samples} samples times {call.copies} copies, but the decoder got {rows} rows")
        if call.mask_BT is not None:
            attended = call.mask_BT.detach().cpu().bool().repeat_interleave(call.copies, dim=0)
        else:
            attended = _columns(mask, rows, 0, call.columns)
        if past == 0 and not call.chunked and length != call.columns:
            raise ValueError(
                f"the prompt has {call.columns} columns, the decoder got {length}: a model that expands image tokens "
                "inside forward, or a mask that does not fit, cannot be steered by position"
            )
        return Sequence(attended, call.columns, call=call)


class Sequence:
    """The columns of one batch of sequences, on the CPU.

    attended_RS: of the columns known so far; columns: where the prompt ends; call: the `generate` it belongs to.
    """

    def __init__(
        self, attended_RS: Tensor, columns: int, *, call: GenerateCall | None = None, prompt_known: bool = True
    ):
        self.rows, self.columns, self.call, self.prompt_known = len(attended_RS), columns, call, prompt_known
        self.cache: weakref.ref | None = None
        self._attended = attended_RS
        self._image: Tensor | None = torch.zeros(self.rows, 0, dtype=torch.bool)
        self._prompt: Tensor | None = None if call is None else attended_RS.sum(1)

    @property
    def length(self) -> int:
        return self._attended.shape[1]

    def attend(self, past: int, length: int, mask: Any) -> None:
        """Learn the columns of a forward outside `generate` from its mask."""
        new = _columns(mask, self.rows, past, past + length)
        self._attended = torch.cat([self._attended[:, :past], new], dim=1)
        if self._prompt is None:
            self._prompt = self._attended.sum(1)

    def see(self, ids: Tensor | None, past: int, length: int, image_token_id: int) -> None:
        """Learn which prompt columns are image tokens. Raises ValueError where ids and states differ in length."""
        if ids is None or self._image is None or self._image.shape[1] < past:
            self._image = None
            return
        if tuple(ids.shape) != (self.rows, length):
            raise ValueError(
                f"input_ids have shape {tuple(ids.shape)}, the decoder computes ({self.rows}, {length}): a model that "
                "expands image tokens inside forward cannot be steered by token kind"
            )
        new = (ids.detach() == image_token_id).cpu()
        self._image = torch.cat([self._image[:, :past], new], dim=1)[:, : self.columns]

    def step(self, past: int, length: int) -> Step:
        """The columns [past, past + length)."""
        stop = past + length
        if self._attended.shape[1] < stop:  # generated by `generate`: attended by construction
            more = torch.ones(self.rows, stop - self._attended.shape[1], dtype=torch.bool)
            self._attended = torch.cat([self._attended, more], dim=1)
        image = None
        if self._image is not None:
            image = torch.zeros(self.rows, length, dtype=torch.bool)
            known = self._image[:, past:stop]
            image[:, : known.shape[1]] = known
        return Step(
            start=past,
            positions_RT=(self._attended[:, :stop].cumsum(1) - 1)[:, past:],
            attended_RT=self._attended[:, past:stop],
            image_RT=image,
            prompt_R=self._prompt,
            copies=1 if self.call is None else self.call.copies,
            only_generated=self.call is not None and past >= self.columns,
        )


def _columns(mask: Any, rows: int, start: int, stop: int) -> Tensor:
    """Boolean (R, stop - start) of an attention mask as the decoder was given it; all true without one."""
    if mask is None:
        return torch.ones(rows, stop - start, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"steering needs the 2D attention mask of the rows, the decoder got {shape}; pass attention_mask"
        )
    if tuple(mask.shape) != (rows, stop):
        raise ValueError(f"the attention mask has shape {tuple(mask.shape)}, cache and tokens make ({rows}, {stop})")
    return mask[:, start:stop].detach().cpu().bool()
