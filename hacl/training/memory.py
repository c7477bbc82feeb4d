"""Memory that a training step needs on a rank: weights, gradients and optimizer by ZeRO stage, and activations.

States are counted from the parameters. Activations are followed through the forward and backward of a micro-batch whose
tensors have shapes and no content, with the model as it trains: frozen parts, LoRA, mixed precision and gradient
checkpointing need no formula. Of a family whose tower and projector are not two calls, activations of the images are
left out, as their shapes depend on content. What kernels and libraries need beside tensors is not in it (a CUDA context
is about half a GiB, and an allocator holds more than it has given out).

Shapes: I images, N image tokens, R packed rows, T tokens per row, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hacl.config import Config
from hacl.losses.contrastive import ENTRY_BYTES, block_anchors, widths
from hacl.models.adapters import Adapter, find_adapter
from hacl.models.attention_masks import is_plain
from hacl.training import runtime
from hacl.training.label_loss import label_losses
from hacl.training.live_memory import LiveBytes
from hacl.training.objective import is_frozen
from hacl.training.outline import build_backbone
from hacl.training.work import count_work

GIB = 2**30
OWN_FEATURE = 26  # bytes of a number of a feature: itself, normalised, gathered, and their gradients, as measured
OTHER_FEATURE = 12  # of another rank or of the queue: gathered, sorted into images and texts, and its gradient


@dataclass
class StepMemory:
    """Bytes on a rank. activations: peak without gradients of weights; with_gradients: peak of both together, where
    gradients are made anew in every step, as activations are given back."""

    activations: float
    with_gradients: float


def state_bytes(
    total: int,
    trained: int,
    *,
    stage: int | None,
    ranks: int,
    bf16: bool,
    frozen_bytes: float,
    whole_gradients: bool = False,
) -> float:
    """Bytes per rank of weights, gradients and Adam state.

    Under DeepSpeed bf16: 2 bytes of weight each, and per trained weight 2 of gradient and 12 of fp32 master and moments
    (Rajbhandari et al., 2020, section 3.1); stage 1 divides the 12 by the ranks, stage 2 also the gradient, stage 3
    also the weights. Without DeepSpeed trained weights are fp32: 4 + 4 + 8, and with several ranks 4 more, because DDP
    keeps gradients a second time in its buckets. frozen_bytes: per frozen weight. whole_gradients: from stage 2 on each
    rank has its share of the gradients and all of them (`train.reduce_once`).
    """
    frozen = total - trained
    if stage is None:
        return frozen * frozen_bytes + trained * (16 if ranks == 1 else 20)
    width = 2 if bf16 else 4
    optimizer = trained * (12 if bf16 else 8) / (ranks if stage >= 1 else 1)
    gradients = trained * width / (ranks if stage >= 2 else 1)
    if whole_gradients and stage >= 2:
        gradients += trained * width
    weights = (frozen * min(width, frozen_bytes) + trained * width) / (ranks if stage == 3 else 1)
    return weights + gradients + optimizer


def total_bytes(
    config: Config, states: float, trained: int, step: StepMemory, *, stage: int | None, ranks: int, contrast: float = 0
) -> float:
    """Peak of a rank: states, activations and the contrastive loss (`contrast_bytes`).

    Without DeepSpeed, one process that does not accumulate makes its gradients anew, and they take the place of
    activations; everywhere else they stay beside them. The matrices of the contrastive loss stand beside activations,
    but with GradCache, whose loss is taken between its passes: there the larger of the two counts.
    """
    alone = stage is None and ranks == 1 and config.train.chunks_per_step == 1
    gradients = trained * 4 if alone else 0
    activations = step.with_gradients if alone else step.activations
    activations = max(activations, contrast) if config.train.grad_cache else activations + contrast
    return states - gradients + max(activations, gradients)


def contrast_bytes(config: Config, size: int, ranks: int) -> float:
    """What the contrastive loss of a step needs on a rank at most, beside a queue: matrices of a block of anchors, and
    features of all ranks with their gradients. size: numbers of a feature, 0 without a contrastive loss."""
    objective, train = config.objective, config.train
    if not size:
        return 0.0
    captions, hard = objective.num_captions, objective.num_hallucinated
    own = train.contrastive_batch_size
    union, past = own * ranks, objective.queue_size
    shapes = widths(
        objective.hard_scope,
        images=union + past,
        captions=(union + past) * captions,
        hallucinated=union * hard + (past * hard if objective.queue_hallucinated else 0),
        own=own * hard,
        hard=hard,
    )
    entries = max(
        min(anchors, block_anchors(width)) * width for anchors, width in zip((own, own * captions), shapes, strict=True)
    )
    gathered = 1 + captions + (hard if objective.hard_scope == "global" else 0)
    features = own * (1 + captions + hard) * OWN_FEATURE + (union - own + past) * gathered * OTHER_FEATURE
    return float(entries * ENTRY_BYTES + features * size)


def step_memory(config: Config, batch: dict[str, Tensor], pixels: tuple[int, ...]) -> StepMemory:
    """Activations of one micro-batch. batch: of `PackedCollator`; pixels: (3, H, W) of an image after processing.

    No content is computed and no weight loaded. GradCache's first pass keeps no graph and needs less.
    """
    engine = runtime.zero_stage(config.train) is not None
    sizes = _Sizes.of(batch, pixels)
    with torch.device("meta"):
        dtype = torch.bfloat16 if engine and config.train.bf16 else None
        backbone = build_backbone(config, masters=not engine, dtype=dtype)
    with FakeTensorMode():
        _without_content(backbone)
        _train_mode(config, backbone)
        return StepMemory(*(_peak(config, backbone, sizes, keep_gradients=keep) for keep in (False, True)))


def _without_content(model: nn.Module) -> None:
    """Give parameters and buffers of the meta device tensors that say they are on the CPU, tied ones the same."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                if old is not None:
                    table[name] = made[id(old)]


@dataclass
class _Sizes:
    rows: int
    tokens: int
    labels: int
    images: int
    features: int
    pixels: tuple[int, ...]
    masked: bool

    @classmethod
    def of(cls, batch: dict[str, Tensor], pixels: tuple[int, ...]) -> _Sizes:
        rows, tokens = batch["input_ids"].shape
        masked = not is_plain(batch["segment_ids"], batch.get("subtree_end"))
        images, features = max(1, count_work(batch).images), len(batch["image_tokens"])
        return cls(rows, tokens, len(batch["label_target"]), images, features, pixels, masked)


def _train_mode(config: Config, backbone: nn.Module) -> None:
    """As `HaclModel` is in training."""
    adapter = find_adapter(backbone)
    backbone.train()
    for modules in adapter.groups().values():
        for module in filter(is_frozen, modules):
            module.eval()
    if config.train.gradient_checkpointing:
        adapter.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        adapter.decoder.train()


def _peak(config: Config, backbone: nn.Module, sizes: _Sizes, *, keep_gradients: bool) -> float:
    parameters = list(backbone.parameters())
    adapter = find_adapter(backbone)
    mixed = config.train.bf16 and runtime.zero_stage(config.train) is None
    inputs = _fake_inputs(config, adapter, sizes)
    known = [*parameters, *backbone.buffers(), *inputs.values()]
    with LiveBytes(known) as live, _freed_gradients(parameters, not keep_gradients):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = _loss(adapter, inputs, config.objective.layer, _loss_kind(config))
        if loss.requires_grad:
            loss.backward()
        del loss
        peak = live.peak
    for parameter in parameters:
        parameter.grad = None
    return float(peak + sum(t.numel() * t.element_size() for t in inputs.values()))


def _fake_inputs(config: Config, adapter: Adapter, sizes: _Sizes) -> dict[str, Tensor]:
    """Tensors of the shapes of a batch."""
    shape = sizes.rows, sizes.tokens
    found = {name: torch.zeros(shape, dtype=torch.long) for name in ("ids", "positions", "source")}
    found["labels"] = torch.zeros(sizes.labels, dtype=torch.long)
    dtype = next(adapter.vision_tower.parameters()).dtype
    if not adapter.is_split:
        found["embeddings"] = torch.zeros(sizes.features, adapter.hidden_size, dtype=dtype)
        found["embeddings"].requires_grad_(not is_frozen(adapter.projector))
    else:
        found["pixels"] = torch.zeros(sizes.images, *sizes.pixels, dtype=dtype)
    if config.train.cache_vision_features and adapter.is_split:
        with torch.no_grad():
            found["features"] = adapter.vision_features(found.pop("pixels"))
    if sizes.masked:
        found["mask"] = torch.zeros(sizes.rows, 1, sizes.tokens, sizes.tokens, dtype=torch.bool)
    return found


def _loss_kind(config: Config) -> str:
    """`objective.lm_loss` as it works out: plain where ZeRO-3 shards the head; Liger's kernel works in chunks."""
    kind = config.objective.lm_loss
    if kind == "auto" and runtime.zero_stage(config.train) == 3:
        return "plain"
    return "chunked" if kind == "liger" else kind


def _loss(adapter: Adapter, inputs: dict[str, Tensor], layer: int | None, kind: str) -> Tensor:
    """The parts of `HaclModel.forward` that hold memory; heads see a few vectors only, and the contrastive loss is in
    `contrast_bytes`."""
    if "embeddings" in inputs:
        projected = inputs["embeddings"]
    elif "features" in inputs:
        projected = adapter.project(inputs["features"]).flatten(0, 1)
    else:
        projected = adapter.image_embeddings({"pixel_values": inputs["pixels"]})
    embeds = adapter.embed(inputs["ids"])
    is_image = (inputs["source"] >= 0)[..., None]
    embeds = torch.where(is_image, projected[inputs["source"].clamp_min(0)].to(embeds.dtype), embeds)
    del projected, is_image
    states, reads = adapter.decode(embeds, inputs.get("mask"), inputs["positions"], layer)
    del embeds
    losses = label_losses(states[inputs["labels"], inputs["labels"]], inputs["labels"], adapter.lm_head, kind)
    return losses.sum() + reads[:, 0].sum()


@contextlib.contextmanager
def _freed_gradients(parameters: list[Tensor], freed: bool) -> Iterator[None]:
    """Give every gradient back as soon as it is complete, so that only activations are left."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    handles = []
    if freed:
        handles = [p.register_post_accumulate_grad_hook(drop) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
