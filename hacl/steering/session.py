"""The steering session: a method's vectors in a model's forward, from entry to exit of a `with` block.

    with steering(model, steerer, layers=[14], alpha=1.0, policy="generated") as s:
        with s.rows(sample_ids=ids):
            model.generate(**inputs)
    print(s.stats)

A vector is decided once per sequence, at its prompt, and then kept: cached, uncached and chunked runs see the same.

Shapes: B samples, R rows (B times beams or return sequences), T tokens, D hidden size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hacl.representations.parts import find_parts
from hacl.steering.contexts import pool, read_contexts
from hacl.steering.decoding import GenerateCall
from hacl.steering.layers import (
    Layer,
    LayerKey,
    decoder_layers,
    final_norm_layer,
    resolve_layer,
    resolve_layers,
)
from hacl.steering.operators import Shift
from hacl.steering.plan import Rows, make_shifts, per_row, spread
from hacl.steering.positions import PositionPolicy, Step
from hacl.steering.steerer import ContextSpec, Steerer
from hacl.steering.trace import Stats, SteeringWarning, Trace
from hacl.steering.tracker import Tracker
from hacl.steering.vectors import check_model


def steering(
    model: nn.Module,
    steerer: Steerer,
    *,
    layers: Iterable[LayerKey] | LayerKey | None = None,
    alpha: float | Sequence[float] | Tensor | None = None,
    policy: str | Tensor | PositionPolicy | None = None,
    context: str = "auto",
    trace: bool = False,
) -> Session:
    """A session to be entered with `with`.

    layers: decoder blocks (index, negative index or name) whose output is steered, or "final_norm"; by default the
    method's own;
    alpha: one coefficient, or one per sample, by default the method's; policy: which positions (see
    `PositionPolicy.parse`); context: how a method that depends on the input reads its states, "single" (in the same
    forward, refused where the shift would be in what it reads), "pass" (an extra forward up to the deepest layer
    read), or "auto"; trace: record the steered positions and the lengths of the steps (costs time).

    Raises:
        ValueError: on entry, for layers or widths that the model does not have, or vectors of another model.
    """
    return Session(model, steerer, layers=layers, alpha=alpha, policy=policy, context=context, trace=trace)


class Session:
    """See `steering`. stats and trace stay readable after the block; layers: {index: Layer} that are steered."""

    def __init__(self, model, steerer, *, layers, alpha, policy, context, trace):
        if context not in ("auto", "single", "pass"):
            raise ValueError(f"context {context!r}: expected auto, single or pass")
        self.steerer, self.context = steerer, context
        self.policy = PositionPolicy.parse(steerer.policy if policy is None else policy)
        self._alpha = per_row(steerer.alpha if alpha is None else alpha, "alpha")
        self.stats, self.trace = Stats(), Trace() if trace else None
        self._parts = find_parts(model)
        self._blocks, final = decoder_layers(self._parts), final_norm_layer(self._parts)
        self._find = functools.partial(resolve_layers, layers=self._blocks, final=final)
        self._modules = [layer.module for layer in (*self._blocks, final)]
        self._specs = [
            (spec, resolve_layer(spec.layer, self._blocks, final).index) for spec in steerer.required_context()
        ]
        self.needs_ids = self.policy.needs_ids or any(s.token in ("mean_text", "mean_image") for s, _ in self._specs)
        self._refuse_images()
        self.layers = self._resolve(layers)
        self._tracker: Tracker | None = None
        self._handles: list = []
        self._given = Rows()
        self._clear()

    def _resolve(self, layers: Iterable[LayerKey] | LayerKey | None) -> dict[int, Layer]:
        own = self._find(self.steerer.layers) if self.steerer.layers else {}
        self._key_of = {layer.index: key for key, layer in own.items()}
        if layers is None:
            return {layer.index: layer for layer in (own or self._find(())).values()}
        asked = self._find([layers] if isinstance(layers, int | str) else layers).values()
        strange = [str(layer) for layer in asked if own and layer.index not in self._key_of]
        if strange:
            has = ", ".join(str(layer) for layer in own.values())
            raise ValueError(f"the {self.steerer.kind!r} steerer has no vector for layer {strange[0]}; it has: {has}")
        return {layer.index: layer for layer in asked}

    def _refuse_images(self) -> None:
        """Raises ValueError where image tokens are asked of a model that has none."""
        asked = [f"positions {self.policy}"] if self.policy.kind == "image" else []
        asked += [f"context {spec.token}" for spec, _ in self._specs if spec.token == "mean_image"]
        if asked and self._parts.image_token_id is None:
            raise ValueError(
                f"{asked[0]}: {type(self._parts.model).__name__} has no image tokens (its config names no "
                "image_token_id)"
            )

    def _clear(self) -> None:
        """Forget the sequence."""
        self._now: tuple[Rows, Tensor, int | None] | None = None  # what was said, alpha of each row, samples
        self._shifts: dict[int, Shift] | None = None
        self._waiting: dict[ContextSpec, int] = {}
        self._states: dict[ContextSpec, Tensor] = {}
        self._ahead: dict[ContextSpec, Tensor] | None = None
        self._chosen: Tensor | bool = False
        self._count = 0  # true places of `_chosen`, where it is a mask
        self._steady = False  # whether `_chosen` holds for every later forward of one generated token
        self._masks: dict[torch.device, Tensor] = {}
        self._step: Step | None = None

    def __enter__(self) -> Session:
        if self._tracker is not None:
            raise RuntimeError("this session is already open; call steering(...) again for another")
        check_model(self.steerer.model, self._parts.model, f"the {self.steerer.kind!r} steerer")
        if not self._specs:  # widths of constant vectors show at once
            self._check_width()
        self._tracker = Tracker.of(self._parts)
        self._tracker.attach(self)
        for index in sorted({*self.layers, *(at for _, at in self._specs)}):
            self._handles.append(self._modules[index].register_forward_hook(self._hook(index), prepend=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._tracker.detach(self)
        self._tracker = None
        self._clear()
        if kind is None and self.stats.total == 0 and bool((self._alpha != 0).any()):
            seen = f"{self.stats.forwards} forwards" if self.stats.forwards else "no forward at all"
            warnings.warn(
                f"the session steered no position: policy {self.policy}, {seen}, layers "
                + ", ".join(str(layer) for layer in self.layers.values()),
                SteeringWarning,
                stacklevel=2,
            )

    @property
    def alpha(self) -> Tensor:
        """The coefficients: fp32 (1) or (B). May be set between sequences."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float | Sequence[float] | Tensor) -> None:
        self._alpha = per_row(value, "alpha")

    @contextlib.contextmanager
    def rows(
        self,
        *,
        sample_ids: Sequence[str] | None = None,
        alpha: Sequence[float] | Tensor | float | None = None,
        prompt_lengths: Sequence[int] | Tensor | None = None,
        context: Mapping[ContextSpec, Tensor] | None = None,
    ) -> Iterator[None]:
        """Say what the samples of the sequences begun inside are.

        sample_ids: B ids; alpha: instead of the session's; prompt_lengths: attended prompt tokens of each sample,
        for a forward that holds prompt and answer at once (else a forward without cache is all prompt); context:
        {spec: (B, D)} of states read elsewhere, instead of reading them.
        """
        before = self._given
        self._given = Rows(
            sample_ids=None if sample_ids is None else list(sample_ids),
            alpha=None if alpha is None else per_row(alpha, "alpha"),
            prompt_lengths=None if prompt_lengths is None else torch.as_tensor(prompt_lengths).cpu().long(),
            context=None if context is None else dict(context),
        )
        try:
            yield
        finally:
            self._given = before

    # What the tracker tells.

    def before_generate(self, call: GenerateCall) -> None:
        """Read the contexts of a prompt that will come in pieces, from a forward of its own."""
        self._clear()
        if not (call.chunked and self._specs and self._given.context is None):
            return
        if self.context == "single":
            raise ValueError("context='single' cannot read a prompt that comes in chunks; use 'auto' or 'pass'")
        ids, mask = call.inputs["input_ids"], call.mask_BT
        attended = mask.detach().cpu().bool()
        image = None if ids is None else torch.zeros_like(attended)
        if image is not None and self._parts.image_token_id is not None:
            image = (ids == self._parts.image_token_id).cpu()
        step = Step(0, attended.cumsum(1) - 1, attended, image, attended.sum(1))
        inputs = {name: value for name, value in call.inputs.items() if value is not None}
        if not call.own_positions:
            inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
        self._ahead = self._pass(lambda: self._parts.model(**inputs, use_cache=False, logits_to_keep=1), step)

    def begin(self, rows: int, samples: int | None) -> None:
        """A new batch of sequences: decide what can be decided before its first forward."""
        ahead = self._ahead
        self._clear()
        self.stats.sequences += 1
        if samples is None and self._given.sample_ids is not None:
            samples = len(self._given.sample_ids)
        alpha = self._alpha if self._given.alpha is None else self._given.alpha
        self._now = (self._given, spread(alpha, rows, samples, "coefficients"), samples)
        context = self._given.context if self._given.context is not None else ahead
        if not self._specs:
            self._decide({}, rows)
        elif context is not None:
            self._decide(context, rows)
        else:
            self._waiting = dict(self._specs)

    def goes_on(self, length: int) -> bool:
        """Whether one more generated token is steered, or not, just as the one before: then nothing is looked up."""
        if length != 1 or not self._steady:
            return False
        self.stats.forwards += 1
        return True

    def before_forward(self, step: Step, prompt_known: bool, kwargs: dict[str, Any]) -> None:
        """Choose the positions of one forward, and read contexts that it cannot read itself."""
        self.stats.forwards += 1
        if self._now is None:  # entered between two forwards of a sequence
            self.begin(step.shape[0], None)
        given, alpha, samples = self._now
        step = given.place(step, samples)
        if not prompt_known and given.prompt_lengths is None and (self.policy.needs_prompt or self._specs):
            raise ValueError(
                "the session was entered in the middle of a sequence and does not know where its prompt ended; enter "
                "it before the prompt is read, or give s.rows(prompt_lengths=...)"
            )
        self._step, self._masks = step, {}
        active = alpha != 0
        self._chosen = self.policy.steered(step) if bool(active.any()) else False
        if self._chosen is not False and not bool(active.all()):
            chosen = self._chosen if isinstance(self._chosen, Tensor) else torch.ones(step.shape, dtype=torch.bool)
            self._chosen = chosen & active.expand(step.shape[0])[:, None]
        self._count = int(self._chosen.sum()) if isinstance(self._chosen, Tensor) else 0
        if self._waiting and bool(active.any()):
            self._schedule(step, kwargs)
        one = step.only_generated and step.shape[1] == 1
        self._steady = one and self.policy.kind != "custom" and self.trace is None and not self._waiting

    def _schedule(self, step: Step, kwargs: dict[str, Any]) -> None:
        """Read the contexts in this forward if no shift can be in them, else in a pass before it."""
        if step.start != 0:
            raise ValueError(
                "the states this method reads lie in a cache that was made before; give s.rows(context=...)"
            )
        deepest = max(self._waiting.values())
        clean = self._chosen is False or deepest <= min(self.layers)
        clean = clean and all(other is self or min(other.layers) > deepest for other in self._tracker.sessions)
        if self.context == "single" and not clean:
            raise ValueError(
                f"context='single': block {deepest} is read after a block that is steered in the same forward; "
                "use 'auto' or 'pass'"
            )
        if clean and self.context != "pass":
            return
        one = dataclasses.replace(
            step,
            positions_RT=step.positions_RT[:: step.copies], attended_RT=step.attended_RT[:: step.copies],
            image_RT=None if step.image_RT is None else step.image_RT[:: step.copies],
            prompt_R=step.prompt_R[:: step.copies], copies=1,
        )  # fmt: skip
        inputs = {**kwargs, "past_key_values": None, "use_cache": False}
        for name in ("inputs_embeds", "input_ids", "position_ids"):
            value = inputs.get(name)
            axis = 1 if name == "position_ids" and isinstance(value, Tensor) and value.ndim == 3 else 0  # 3D: Qwen2-VL
            if isinstance(value, Tensor) and value.shape[axis] == step.shape[0]:
                inputs[name] = value[:, :: step.copies] if axis else value[:: step.copies]
        attended_RT = one.attended_RT.to(next(self._parts.decoder.parameters()).device).long()
        inputs["attention_mask"] = _of_first_copies(kwargs.get("attention_mask"), step.copies, attended_RT)
        states = self._pass(lambda: self._parts.decoder(**inputs), one)
        self._waiting = {}
        self._decide(states, step.shape[0])

    def _pass(self, run, step: Step) -> dict[ContextSpec, Tensor]:
        self.stats.context_passes += 1
        with self._tracker.mute(), torch.no_grad():
            return read_contexts(run, self._modules, self._specs, step)

    # Vectors.

    def _decide(self, context: Mapping[ContextSpec, Tensor], rows: int) -> None:
        """Ask the method for its vectors, and lay them out for `rows` rows."""
        given, alpha, samples = self._now
        if bool((alpha != 0).any()):
            values = self._by_index(self.steerer.vectors(context, given.sample_ids))
            self._shifts = make_shifts(self.steerer, values, alpha, rows, samples, self._parts.hidden_size)
            for index, shift in self._shifts.items():
                shift.key = self._key_of.get(index)

    def _by_index(self, values: Mapping[LayerKey | None, Tensor]) -> dict[int, tuple[Layer, Tensor]]:
        found = {}
        for index, layer in self.layers.items():
            key = self._key_of.get(index)
            if key not in values and None not in values:
                raise ValueError(f"the {self.steerer.kind!r} steerer gave no vector for layer {layer}")
            found[index] = (layer, values[key if key in values else None])
        return found

    def _check_width(self) -> None:
        for layer in self.layers.values():
            value = self.steerer.width_of(self._key_of.get(layer.index))
            if value is not None and value != self._parts.hidden_size:
                raise ValueError(
                    f"layer {layer}: the vector has width {value}, the model {self._parts.hidden_size}; it belongs "
                    "to another model"
                )

    # Blocks.

    def _hook(self, index: int):
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
            tracker = self._tracker
            if tracker is None or tracker.muted or not tracker.running or self._step is None:
                return None
            self.stats.hook_calls += 1
            h_RTD = output[0] if isinstance(output, tuple) else output
            if self._waiting and index in self._waiting.values():
                self._read(index, h_RTD)
            if self._chosen is False or index not in self.layers:
                return None
            changed = self._steer(index, h_RTD)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _read(self, index: int, h_RTD: Tensor) -> None:
        for spec in [spec for spec, at in self._waiting.items() if at == index]:
            self._states[spec] = pool(h_RTD, spec, self._step)
            del self._waiting[spec]
        if not self._waiting:
            self._decide(self._states, h_RTD.shape[0])

    def _steer(self, index: int, h_RTD: Tensor) -> Tensor:
        chosen, shift = self._chosen, self._shifts[index]
        mask = None
        if isinstance(chosen, Tensor):
            if h_RTD.device not in self._masks:
                self._masks[h_RTD.device] = chosen[..., None].to(h_RTD.device, non_blocking=True)
            mask = self._masks[h_RTD.device]
        changed = self.steerer.adjust(index, h_RTD, shift, mask)
        if changed.shape != h_RTD.shape or changed.dtype != h_RTD.dtype:
            raise ValueError(
                f"adjust of the {self.steerer.kind!r} steerer made {changed.dtype} {tuple(changed.shape)} of "
                f"{h_RTD.dtype} {tuple(h_RTD.shape)}; it must keep both"
            )
        if mask is not None:
            changed = torch.where(mask, changed, h_RTD)
        self.stats.positions[index] += h_RTD.shape[0] * h_RTD.shape[1] if mask is None else self._count
        if self.trace is not None:
            every = chosen if isinstance(chosen, Tensor) else torch.ones(self._step.shape, dtype=torch.bool)
            self.trace.add(self.stats.forwards - 1, index, every, self._step.positions_RT)
            self.trace.measure(index, h_RTD, changed, mask)
        return changed


def _of_first_copies(mask: Any, copies: int, attended_RT: Tensor) -> Any:
    """The decoder's mask of every first copy: one that says which token sees which as it is, else which are there."""
    if isinstance(mask, dict):
        return {kind: _of_first_copies(each, copies, attended_RT) for kind, each in mask.items()}
    whole = isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] == attended_RT.shape[1]
    return mask[::copies] if whole else attended_RT
