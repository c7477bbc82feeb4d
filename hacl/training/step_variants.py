"""The same training step in several forms, on the same samples and the same random weights, for measurement.

sft: generation alone, logits at label positions. sft_plain: logits at every position. packed: the step of this project.
four_calls: the released form of HACL, with generation, image, caption and hallucinated captions each in a call of its
own and logits at every position (mPLUG-HalOwl/hacl@63863fc). stage1_sft and stage1_cached: generation alone, and the
packed step with cached states of constant text, with the LLM frozen and the projector trained. The tower is frozen.

Shapes: B samples, N image tokens, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import random
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hacl.config import ObjectiveConfig
from hacl.data.collate import PackedCollator
from hacl.data.dataset import Sample
from hacl.data.image_formats import ImageFormat
from hacl.data.templates import EncodedSequence
from hacl.losses.contrastive import contrastive_loss
from hacl.models import attention
from hacl.models.random_llava import Size, llava_config
from hacl.training.flops import Execution, StepCost, step_cost
from hacl.training.kernels import compile_blocks
from hacl.training.label_loss import plain_limit
from hacl.training.objective import HaclModel
from hacl.training.work import Work, count_work

BOS, EOS, FIRST_WORD = 1, 2, 3
FROZEN = ("stage1_sft", "stage1_cached")
UNPACKED = ("sft_plain", "four_calls")  # logits at every position


@dataclass(frozen=True)
class Case:
    """What is measured. caption and hallucinated: tokens of a root with BOS and EOS; spread: share by which lengths
    vary; attention: as `model.attn_implementation`."""

    size: Size
    batch: int = 4
    caption: int = 40
    hallucinated: int = 45
    count: int = 1
    spread: float = 0.0
    head: str = "linear"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    attention: str = "auto"
    recompute: bool = False
    compiled: bool = False
    seed: int = 0

    @property
    def image_tokens(self) -> int:
        return (self.size.pixels // 14) ** 2

    @property
    def image_id(self) -> int:
        return self.size.vocabulary - 1


@dataclass
class Variant:
    """loss: forward of a step; work: what its batch holds (None for a form that is no packed batch)."""

    loss: Callable[[], Tensor]
    work: Work | None
    frozen: bool


class _Encoder:
    """What a collator asks of an encoder, for sequences that are already tokens."""

    eos = [EOS]
    images = Namespace(format=ImageFormat())
    tokenizer = Namespace(pad_token_id=0, eos_token_id=EOS)

    def __init__(self, case: Case):
        self.num_image_tokens, self.image_token_id = case.image_tokens, case.image_id

    def root_span(self, ids: Sequence[int], pool: str) -> tuple[int, int]:
        return len(ids) - 1, len(ids)


class _Constant:
    """Stands in for the cache of text states."""

    def __init__(self, width: int, dtype: torch.dtype):
        self.width, self.dtype = width, dtype

    def lookup(self, roots: Sequence) -> Tensor:
        return torch.randn(len(roots), self.width).to(self.dtype)


def build_backbone(case: Case) -> nn.Module:
    """A LLaVA with random weights, its decoder attending as the case says."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(case.seed)
    with torch.device(case.device):
        model = AutoModelForImageTextToText.from_config(
            llava_config(case.size, case.image_id), dtype=case.dtype, attn_implementation="sdpa"
        )
    return model


def draw_roots(case: Case) -> list[list[list[int]]]:
    """For each sample its caption and hallucinated captions as roots: a word of the caption exchanged, some added."""
    draw = random.Random(case.seed)

    def words(tokens: int) -> list[int]:
        count = max(1, round((tokens - 2) * draw.uniform(1 - case.spread, 1 + case.spread)))
        return [draw.randrange(FIRST_WORD, case.image_id) for _ in range(count)]

    samples = []
    for _ in range(case.batch):
        caption = words(case.caption)
        roots = [caption]
        for _ in range(case.count):
            edited = (caption + words(case.hallucinated))[: len(words(case.hallucinated))]
            edited[draw.randrange(min(len(edited), len(caption)))] = draw.randrange(FIRST_WORD, case.image_id)
            roots.append(edited)
        samples.append([[BOS, *root, EOS] for root in roots])
    return samples


def make_samples(case: Case, roots: Sequence, *, contrastive: bool) -> list[Sample]:
    made, side = [], case.size.pixels
    generator = torch.Generator().manual_seed(case.seed)
    for index, (caption, *hallucinated) in enumerate(roots):
        ids = [BOS, *[case.image_id] * case.image_tokens, *caption[1:]]
        labels = [False] * (case.image_tokens + 1) + [True] * (len(caption) - 1)
        pixels = {"pixel_values": torch.randn(3, side, side, generator=generator).to(case.dtype)[None]}
        span = [(1, case.image_tokens + 1)]
        sample = Sample(index, str(index), ["-"], [pixels], EncodedSequence(ids, labels, span), image_id=index)
        if contrastive:
            sample.contrastive_image, sample.caption_roots = True, [caption]
            sample.hallucinated_roots, sample.caption_keys = hallucinated, [index]
            sample.hallucinated_types = [0] * len(hallucinated)
        made.append(sample)
    return made


class Variants:
    """All forms around one backbone. `variants` names them; `select` sets what trains before one is run."""

    def __init__(self, case: Case):
        self.case = case
        backbone = build_backbone(case)
        backbone.requires_grad_(True)
        objective = ObjectiveConfig(num_hallucinated=case.count, head=case.head)
        plain = ObjectiveConfig(contrastive_weight=0.0, num_hallucinated=0)
        self.packed = HaclModel(backbone, objective).to(case.device, case.dtype)
        self.plain = HaclModel(backbone, plain)
        adapter = self.packed.adapter
        self.attention = attention.resolve(
            case.attention, trees=False, dtype=case.dtype, compiled=case.compiled, device=case.device
        )
        attention.set_attention(adapter.decoder, self.attention)
        self._frozen: bool | None = None
        self.costs = {frozen: self._cost(frozen) for frozen in (False, True)}
        if case.recompute:
            for model in (self.packed, self.plain):
                model.gradient_checkpointing_enable()
        if case.compiled:
            compile_blocks(adapter)
        roots, encoder = draw_roots(case), _Encoder(case)
        cache = _Constant(adapter.hidden_size, case.dtype)
        samples = {kind: make_samples(case, roots, contrastive=kind) for kind in (False, True)}
        generation = PackedCollator(encoder, plain)(samples[False])
        whole = PackedCollator(encoder, objective)(samples[True])
        cached = PackedCollator(encoder, objective, text_states=cache)(samples[True])
        works = [count_work(batch) for batch in (generation, whole, cached)]
        self._generation, self._whole, cached = (self._placed(batch) for batch in (generation, whole, cached))
        self._texts = [self._padded([sample[kind] for sample in roots]) for kind in range(1 + case.count)]
        self.variants = {
            "sft": Variant(lambda: self.plain(**self._generation).loss, works[0], False),
            "sft_plain": Variant(self._everywhere, works[0], False),
            "packed": Variant(lambda: self.packed(**self._whole).loss, works[1], False),
            "four_calls": Variant(self._four_calls, works[1], False),
            "stage1_sft": Variant(lambda: self.plain(**self._generation).loss, works[0], True),
            "stage1_cached": Variant(lambda: self.packed(**cached).loss, works[2], True),
        }

    def select(self, name: str) -> None:
        """Train what a variant trains, and clear gradients."""
        frozen = self.variants[name].frozen
        if frozen != self._frozen:
            self._freeze(frozen)
        self.packed.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def countable(self) -> Iterator[None]:
        """Attention in a kernel that torch's counter knows, whatever is timed."""
        used, self.attention = self.attention, "sdpa"
        attention.set_attention(self.packed.adapter.decoder, "sdpa")
        try:
            yield
        finally:
            self.attention = used
            attention.set_attention(self.packed.adapter.decoder, used)

    def executed(self, name: str, *, counter: bool = False) -> float | None:
        """What a variant runs by the cost model, or what torch's counter should see of it within `countable`: attention
        over whole rows. None for the forms with logits at every position, which the model does not describe."""
        if name in UNPACKED:
            return None
        variant, used = self.variants[name], "eager" if counter else self.attention
        pairs: Any = {"eager": "dense_pairs", "sdpa": "masked_pairs"}.get(used, "packed_pairs")
        limit = plain_limit(self.packed.objective.lm_loss, self.case.size.vocabulary, is_sharded=False)
        how = Execution(pairs, counter or used != "eager", self.case.recompute, plain_labels=limit)
        return self.costs[variant.frozen].executed(variant.work, how)

    def minimal(self, name: str) -> float:
        """The least work for the losses of a variant."""
        variant = self.variants[name]
        return self.costs[variant.frozen].minimal(variant.work)

    def _freeze(self, frozen: bool) -> None:
        adapter = self.packed.adapter
        for module in (adapter.decoder, adapter.lm_head):
            module.requires_grad_(not frozen)
        adapter.vision_tower.requires_grad_(False)
        self.packed.train()
        self.plain.train()
        self._frozen = frozen

    def _cost(self, frozen: bool) -> StepCost:
        """From a copy without weights: the same layers, whatever device, kernel and dtype."""
        with torch.device("meta"):
            copy = build_backbone(_on_meta(self.case))
            twin = HaclModel(copy, self.packed.objective)
            twin.to("meta")
            for part in (twin.adapter.decoder, twin.adapter.lm_head):
                part.requires_grad_(not frozen)
            twin.adapter.vision_tower.requires_grad_(False)
            side = self.case.size.pixels
            pixels = torch.empty(1, 3, side, side, dtype=self.case.dtype)
            return step_cost(twin.adapter, twin.heads, {"pixel_values": pixels})

    def _placed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.case.device) for name, tensor in batch.items()}

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids (B, T) of one kind of text, padded, and the position of each EOS."""
        device = self.case.device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return ids.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)

    def _everywhere(self) -> Tensor:
        states, _ = self.plain.encode(self._generation)
        return self._all_logits_loss(states)

    def _all_logits_loss(self, states: Tensor) -> Tensor:
        """Logits (B, T, V) at every position, as stock models make them, and the loss of those with a label."""
        logits = self.plain.adapter.logits(states)
        targets = torch.full(logits.shape[:2], -100, device=logits.device)
        rows, columns = self._generation["label_read"].unbind(-1)
        targets[rows, columns] = self._generation["label_target"]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _four_calls(self) -> Tensor:
        adapter, heads, batch = self.packed.adapter, self.packed.heads, self._generation
        size, device = self.case.batch, batch["input_ids"].device
        with torch.no_grad():
            features = adapter.vision_features(batch["pixel_values"])
        projected = adapter.project(features)
        eos = adapter.embed(torch.full((size, 1), EOS, device=device))
        calls = [torch.cat([projected, eos], dim=1), *[adapter.embed(ids) for ids, _ in self._texts]]
        ends = [torch.full((size,), self.case.image_tokens, device=device), *[end for _, end in self._texts]]
        every = torch.arange(size, device=device)
        pooled = [self._decode(embeds)[every, end] for embeds, end in zip(calls, ends, strict=True)]
        embeds = adapter.embed(batch["input_ids"])
        is_image = (batch["image_source"] >= 0)[..., None]
        embeds = torch.where(is_image, projected.flatten(0, 1)[batch["image_source"].clamp_min(0)], embeds)
        language = self._all_logits_loss(self._decode(embeds))
        table = self._whole
        contrastive, _ = contrastive_loss(
            heads.project_image(pooled[0]),
            heads.project_text(pooled[1])[:, None],
            heads.project_text(torch.stack(pooled[2:], dim=1)),
            heads.log_inverse_temperature(),
            image_mask_B=table["image_valid"],
            caption_mask_BC=table["caption_valid"],
            hallucinated_mask_BK=table["hallucinated_valid"],
            image_ids_B=table["image_ids"],
            caption_keys_BC=table["caption_keys"],
        )
        return language + contrastive

    def _decode(self, embeds: Tensor) -> Tensor:
        """One call over rows (B, T) that each are a sequence, padded behind."""
        rows, tokens = embeds.shape[:2]
        segments = torch.ones(rows, tokens, dtype=torch.long, device=embeds.device)
        seen = attention.packed_attention(self.attention, segments, None, embeds.dtype)
        positions = torch.arange(tokens, device=embeds.device).expand(rows, -1)
        return self.packed.adapter.decode(embeds, seen, positions)[0]


def _on_meta(case: Case) -> Case:
    from dataclasses import replace

    return replace(case, device="meta")
