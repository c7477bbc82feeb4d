"""Floating point operations of a training step: the least that its losses need, and what is really executed.

What one token, one pair of positions, one image, one label and one read cost is taken from the shapes of the linear
layers and convolutions of a model, whatever they are called; whether a layer needs the gradient of its input or of its
weight is asked of autograd, so frozen parts, LoRA and tied heads need no rule of their own. How many of each a batch
has is counted in `hacl.training.work`. A product of (m, k) and (k, n) is 2 m k n operations; norms, activations,
softmax, the similarity matrix and the optimizer are left out, as in torch's counter.

`minimal` is the numerator of the model FLOPs utilisation: every distinct causal context of the micro-batch once, each
position attending to itself and what is before it, logits at labels only, constant text forward only. Recomputation,
the first pass of GradCache, padding, masked-out scores and repeated prefixes are in `executed` alone.

T tokens, R rows, D hidden size.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hacl.training.work import Work

FUSED_BACKWARD = 2.5  # forward passes of a fused attention's backward: it computes the scores anew
PLAIN_BACKWARD = 2.0


@dataclass(frozen=True)
class Part:
    """Operations of one unit. forward, backward: of linear layers and convolutions; attention: forward of the rest;
    share: of the attention that has a backward; again: forward that recomputation repeats, in the blocks that a
    gradient reaches and up to their last layer, whose output nothing asks for."""

    forward: float = 0.0
    backward: float = 0.0
    attention: float = 0.0
    share: float = 0.0
    again: float = 0.0

    def total(self, count: float, factor: float = PLAIN_BACKWARD) -> float:
        """Forward and backward of `count` units, attention included."""
        return count * (self.forward + self.backward + self.attention * (1 + factor * self.share))


@dataclass(frozen=True)
class Execution:
    """How a step is run. pairs: the positions that attention goes over, a count of `Work`: whole rows (as torch's
    counter reads any kernel), what a dense mask or a causal flag leaves, or what is seen; fused: its backward computes
    the scores anew; recompute: gradient checkpointing; grad_cache: a first pass without a graph and without logits;
    plain_labels: labels of a micro-batch above which a head that takes part in the backward runs again there, as
    `hacl.training.label_loss.plain_limit` gives them."""

    pairs: Literal["dense_pairs", "masked_pairs", "packed_pairs"] = "dense_pairs"
    fused: bool = True
    recompute: bool = False
    grad_cache: bool = False
    plain_labels: float = math.inf


@dataclass(frozen=True)
class StepCost:
    """Units: an image (vision, projector), a token (decoder), a pair of positions (attention), a label (head), a
    representation (image_head, text_head). constant_text: no gradient is needed where no image is seen."""

    vision: Part
    projector: Part
    decoder: Part
    attention: Part
    head: Part
    image_head: Part
    text_head: Part
    constant_text: bool

    def minimal(self, work: Work) -> float:
        """The least for the losses of a micro-batch, forward and backward."""
        trained, trained_pairs = work.contexts, work.pairs
        if self.constant_text:
            trained, trained_pairs = trained - work.text_contexts, trained_pairs - work.text_pairs
        attention = self.attention
        return (
            self.vision.total(work.towers)
            + self.projector.total(work.images)
            + work.contexts * self.decoder.forward
            + trained * self.decoder.backward
            + work.pairs * attention.attention
            + trained_pairs * attention.attention * attention.share * PLAIN_BACKWARD
            + self.head.total(work.labels)
            + self.image_head.total(work.image_reads)
            + self.text_head.total(work.text_reads)
        )

    def executed(self, work: Work, how: Execution | None = None) -> float:
        """What the packed step runs, padding and gradients of constant text included. how: None is as torch's counter
        reads a plain step. Of several micro-batches added up, the mean says whether the LM head runs again."""
        how = how or Execution()
        pairs: int = getattr(work, how.pairs)
        factor = FUSED_BACKWARD if how.fused else PLAIN_BACKWARD
        images, towers = work.images_run, work.towers_run
        decoder, attention = self.decoder, self.attention
        total = self.vision.total(towers, factor) + self.projector.total(images)
        total += decoder.total(work.slots) + attention.total(pairs, factor)
        total += self.head.total(work.labels)
        if self.head.backward and work.labels > how.plain_labels * max(1, work.batches):
            total += work.labels * self.head.forward
        total += self.image_head.total(work.image_read_slots) + self.text_head.total(work.text_read_slots)
        if how.recompute:
            total += work.slots * decoder.again + pairs * attention.attention * attention.share
            total += towers * (self.vision.again + self.vision.attention * self.vision.share)
        if how.grad_cache:
            total += towers * (self.vision.forward + self.vision.attention) + images * self.projector.forward
            total += work.slots * decoder.forward + pairs * attention.attention
            total += work.image_read_slots * self.image_head.forward + work.text_read_slots * self.text_head.forward
        return total


@dataclass
class _Layer:
    """One call of a linear layer or convolution."""

    module: nn.Module
    forward: float
    input_trains: bool
    weight_trains: bool
    reached: bool = False

    @property
    def backward(self) -> float:
        return self.forward * (self.input_trains + self.weight_trains) if self.reached else 0.0


@dataclass
class _Record:
    calls: list[_Layer] = field(default_factory=list)

    def part(self, module: nn.Module) -> Part:
        """Sums over the layers below a module; blocks are those of its longest list."""
        inside = set(module.modules())
        calls = [call for call in self.calls if call.module in inside]
        again = 0.0
        for block in blocks_of(module):
            within = set(block.modules())
            own = [call for call in calls if call.module in within]
            if any(call.reached for call in own):
                again += sum(call.forward for call in own[:-1])
        return Part(sum(call.forward for call in calls), sum(call.backward for call in calls), again=again)

    def trained_share(self, modules: Sequence[nn.Module]) -> float:
        """Share of the modules in which a layer takes part in the backward."""
        touched = 0
        for module in modules:
            within = set(module.modules())
            touched += any(call.backward for call in self.calls if call.module in within)
        return touched / len(modules) if modules else 0.0


def blocks_of(module: nn.Module) -> Sequence[nn.Module]:
    """The longest list of modules below `module`; none for a module without a list."""
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return list(max(stacks, key=len)) if stacks else []


@contextlib.contextmanager
def recording(*modules: nn.Module) -> Iterator[_Record]:
    """Record every call of a linear layer or convolution below the modules (a leaf with a matrix; no embedding)."""
    record, handles, seen = _Record(), [], set()

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        weight = module.weight
        if isinstance(module, nn.Linear):  # the weight itself may be sharded or quantised
            each, outputs = module.in_features, output.numel()
        else:
            channels = output.shape[1] if isinstance(module, nn.modules.conv._ConvNd) else output.shape[-1]
            each, outputs = weight.numel() / channels, output.numel()
        call = _Layer(module, 2.0 * each * outputs, inputs[0].requires_grad, weight.requires_grad)
        record.calls.append(call)
        if output.requires_grad:
            output.register_hook(lambda _: setattr(call, "reached", True))

    for leaf in (leaf for module in modules for leaf in module.modules()):
        weight = getattr(leaf, "weight", None)
        is_matrix = isinstance(weight, Tensor) and (weight.dim() >= 2 or isinstance(leaf, nn.Linear))
        if leaf in seen or next(leaf.children(), None) is not None or isinstance(leaf, nn.Embedding) or not is_matrix:
            continue
        seen.add(leaf)
        handles.append(leaf.register_forward_hook(hook))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def step_cost(
    adapter, heads, inputs: Mapping[str, Tensor] | None, *, layer: int | None = None, tokens: int = 4
) -> StepCost:
    """Cost of each unit, from one small forward and backward pass of the model (best on the meta device: it is free).

    inputs: the tensors of one image as the processor makes it, None to leave out what images cost; layer:
    `objective.layer`. The model must be in the state it trains in as far as `requires_grad` goes, without gradient
    checkpointing. Gradients of parameters stay as they are.
    """
    tower, decoder = adapter.vision_tower, adapter.decoder
    parts = [tower, adapter.projector, decoder, adapter.lm_head, *([heads] if heads is not None else [])]
    frozen_decoder = not any(p.requires_grad for p in decoder.parameters())
    before = [p for part in (tower, adapter.projector, adapter.embed_tokens) for p in part.parameters()]
    embeds = _embeds(adapter, tokens).requires_grad_(any(p.requires_grad for p in before))
    with recording(*parts) as record, torch.enable_grad():
        outputs = [] if inputs is None else [adapter.image_embeddings(inputs)]
        states, reads = _decode(adapter, embeds, layer)
        outputs.append(adapter.logits(states))
        image = text = Part()
        if heads is not None:
            start = len(record.calls)
            outputs.append(heads.project_image(reads))
            middle = len(record.calls)
            outputs.append(heads.project_text(reads.detach() if frozen_decoder else reads))
            image_calls, text_calls = record.calls[start:middle], record.calls[middle:]
        loss = sum(output.sum().float() for output in outputs)
        targets = {id(p): p for part in parts for p in part.parameters() if p.requires_grad}
        targets = [*targets.values(), *([embeds] if embeds.requires_grad else [])]
        if loss.requires_grad and targets:
            torch.autograd.grad(loss, targets, allow_unused=True)
    if heads is not None:
        image, text = (_scaled(_sum(calls), tokens) for calls in (image_calls, text_calls))
    vision = record.part(tower)
    reached = [call for call in record.calls if call.module in set(tower.modules())]
    trained = sum(call.forward for call in reached if call.backward)
    return StepCost(
        vision=Part(
            vision.forward,
            vision.backward,
            0.0 if inputs is None else _beyond((tower, adapter.projector), lambda: adapter.image_embeddings(inputs)),
            trained / vision.forward if vision.forward else 0.0,
            vision.again,
        ),
        projector=record.part(adapter.projector),
        decoder=_scaled(record.part(decoder), tokens),
        attention=Part(attention=_per_pair(adapter, tokens), share=record.trained_share(blocks_of(decoder))),
        head=_scaled(record.part(adapter.lm_head), tokens),
        image_head=image,
        text_head=text,
        constant_text=frozen_decoder,
    )


def _embeds(adapter, tokens: int) -> Tensor:
    weight = adapter.embed_tokens.weight
    return torch.zeros(1, tokens, adapter.hidden_size, device=weight.device, dtype=weight.dtype)


def _decode(adapter, embeds: Tensor, layer: int | None = None) -> tuple[Tensor, Tensor]:
    tokens, device = embeds.shape[1], embeds.device
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
    return adapter.decode(embeds, mask, torch.arange(tokens, device=device)[None], layer)


def _sum(calls: Sequence[_Layer]) -> Part:
    return Part(sum(call.forward for call in calls), sum(call.backward for call in calls))


def _scaled(part: Part, count: int) -> Part:
    return Part(part.forward / count, part.backward / count, again=part.again / count)


def _beyond(modules: Sequence[nn.Module], call) -> float:
    """What torch counts in a forward pass beyond linear layers and convolutions: attention."""
    with recording(*modules) as record, counting() as counter, torch.no_grad():
        call()
    return max(0.0, counter.get_total_flops() - sum(layer.forward for layer in record.calls))


def _per_pair(adapter, tokens: int) -> float:
    """Attention of all blocks for one query and one key: what grows with the square of the tokens."""
    one, two = (
        _beyond([adapter.decoder], lambda n=n: _decode(adapter, _embeds(adapter, n))) for n in (tokens, 2 * tokens)
    )
    return (two - 2 * one) / (2 * tokens**2)


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """(B, N, Tq, H) x (B, Nk, Tk, H): scores and their product with the values."""
    batch, count, length, width = query
    return 2 * batch * count * length * key[-2] * (width + value[-1])


def _attention_backward_flops(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    """As torch's formula for the fused kernels of a GPU: scores again, and two products for each of the forward."""
    batch, count, length, width = query
    return 2 * batch * count * length * key[-2] * (3 * width + 2 * value[-1])


def counting() -> FlopCounterMode:
    """torch's counter, which knows no attention of a CPU, with that attention (it counts whole rows, causal or not)."""
    kernels = torch.ops.aten
    added = {
        kernels._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping={k: f for k, f in added.items() if k not in flop_registry})
