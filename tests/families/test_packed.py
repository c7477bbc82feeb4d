"""For every family: the packed call is one stock forward pass per sequence, in states and in gradients.

References are the stock classes called on single sequences with what the stock processor makes of their images; where
to read states is taken from `facts.py` and not from the adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hacl.config import ObjectiveConfig
from hacl.data.collate import PackedCollator
from hacl.data.dataset import TrainingDataset
from hacl.data.records import HallucinatedCaption, Record, Turn
from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import find_adapter
from hacl.models.attention_masks import subtree_ends
from hacl.models.families import FAMILIES
from hacl.training.checks import check_image_tokens
from hacl.training.objective import HaclModel
from tests.families.loaded import Family

LAYER = 1  # with DeepStack one after which features are added


def test_a_family_has_an_adapter(family):
    assert family.facts.model_type in FAMILIES


def encoder_of(family: Family) -> SequenceEncoder:
    return SequenceEncoder(
        family.processor,
        template=family.template,
        prompt="describe the image .",
        max_length=4096,
        max_caption_length=64,
    )


def records(family: Family, folder) -> list[Record]:
    """Two captioned images of different shapes, one without a hallucinated caption; a text; two images in one text."""
    for index, image in enumerate(family.images):
        image.save(folder / f"{index}.png")
    false = (HallucinatedCaption(text="a red circle on the right", type="attribute", of=0),)
    made = [
        record("first", ("0.png",), captions=("a red square on the left",), hallucinated=false),
        record("second", ("1.png",), captions=("the small blue cross",)),
        record("text", (), turns=("what colour is it ?", "red")),
    ]
    if family.template == "chat":
        turns = ("<image>\n<image>\nwhich is large ?", "the left", "and <image> ?", "no")
        made.append(record("several", ("1.png", "0.png", "0.png"), turns=turns))
    return made


def record(name, images, captions=(), hallucinated=(), turns=()):
    roles = ("user", "assistant")
    conversation = tuple(Turn(role=roles[i % 2], text=text) for i, text in enumerate(turns))
    return Record(
        id=name, images=images, image_id=name, captions=captions, hallucinated=hallucinated, conversation=conversation,
        objects=None, extra={},
    )  # fmt: skip


class Case:
    """A family in fp64 (norms of most stock classes round to fp32) with a batch of samples."""

    def __init__(self, family: Family, folder, kept=slice(None), **settings):
        torch.manual_seed(0)
        objective = ObjectiveConfig(layer=LAYER, num_hallucinated=1, **settings)
        self.family, self.encoder = family, encoder_of(family)
        dataset = TrainingDataset(
            records(family, folder)[kept], self.encoder, image_root=folder, objective=objective, seed=0
        )
        self.samples = [dataset[i] for i in range(len(dataset))]
        self.backbone = copy.deepcopy(family.model).double()
        if family.name.endswith("_moe"):
            self.backbone.set_experts_implementation("eager")  # the stock default takes no fp64
        self.model = HaclModel(self.backbone, objective).double().train()
        self.batch = PackedCollator(self.encoder, objective)(self.samples)
        self.images = [image for sample in self.samples for image in sample.pixels]

    def paths(self) -> Iterator[tuple[int, Tensor]]:
        """Row and columns of every sequence, and in a tree of every branch with what precedes it."""
        segments = self.batch["segment_ids"]
        columns, ends = torch.arange(segments.shape[1]), self.batch.get("subtree_end", subtree_ends(segments))
        for row, last in (segments > 0).nonzero().tolist():
            if ends[row, last] == last + 1:
                sees = (columns <= last) & (ends[row] > last) & (segments[row] == segments[row, last])
                yield row, sees.nonzero().flatten()

    def prompt_of(self, ids: list[int]) -> int:
        """Tokens before the answer of one of the sequences: a text by itself is all answer, an image by itself none."""
        for sample in self.samples:
            for sequence in (sample.generation, *sample.hallucinated_generations):
                if sequence.ids == ids:
                    return sequence.is_label.index(True)
            if sample.image_root is not None and sample.image_root.ids == ids:
                return len(ids) - 1
        return 0

    def images_of(self, ids: list[int], shown: list[int]) -> list[dict[str, Tensor]]:
        """The images of the sample that a sequence belongs to, in the order of its record."""
        if not shown:
            return []
        owners = [sample for sample in self.samples for _ in sample.pixels]
        sample = owners[shown[0]]
        sequences = [sample.generation, *sample.hallucinated_generations, *filter(None, [sample.image_root])]
        branch = sample.generation.ids[: len(ids) - 1] + self.encoder.eos
        assert ids in [*(sequence.ids for sequence in sequences), branch]
        return sample.pixels

    def alone(self, row: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) states of one sequence in the stock model: after the final norm, and what block LAYER + 1 reads."""
        ids = self.batch["input_ids"][row, columns][None]
        source = self.batch["image_source"][row, columns]
        shown = self.batch["image_tokens"][source[source >= 0]].unique_consecutive()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        images = self.images_of(ids[0].tolist(), shown.tolist())
        if not images and not self.family.facts.text_alone:
            images = [self.encoder.images.blank()]  # which no token shows
        if images:
            inputs |= self.encoder.images.format.collate(images)
            inputs = {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
        inputs |= self.family.token_types(ids, self.prompt_of(ids[0].tolist()))
        facts, seen = self.family.facts, {}
        decoder = self.backbone.get_submodule(facts.decoder)
        hooks = [
            decoder.get_submodule(facts.norm).register_forward_hook(lambda _, args, out: seen.update(final=out[0])),
            decoder.layers[LAYER].register_forward_pre_hook(
                lambda _, args, kw: seen.update(read=(args[0] if args else kw["hidden_states"])[0]), with_kwargs=True
            ),
        ]
        try:
            self.backbone(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen["final"], seen["read"]


FORMS = [{}, {"form": "strict"}, {"form": "eos_branch", "share_prefixes": True, "likelihood_margin_weight": 1.0}]


@pytest.mark.parametrize("settings", FORMS, ids=["in_place", "strict", "trees"])
def test_every_packed_sequence_has_the_states_and_gradients_of_the_stock_model(family, tmp_path, settings):
    if family.facts.prompt_sees_prompt and settings.get("form") == "eos_branch":
        settings = {**settings, "form": "strict"}
    case = Case(family, tmp_path, **settings)
    states, reads = case.model.encode(case.batch)
    packed, alone, count = [], [], 0
    for row, columns in case.paths():
        references = case.alone(row, columns)
        for found, reference in zip((states, reads), references, strict=True):
            torch.testing.assert_close(found[row, columns], reference, rtol=0, atol=1e-5)
            weights = torch.linspace(-1, 1, reference.numel(), dtype=reference.dtype).view_as(reference)
            packed.append((found[row, columns] * weights).sum())
            alone.append((reference * weights).sum())
        count += 1
    assert count >= 5 and states.std() > 0.1
    parameters = dict(case.backbone.named_parameters())
    found = gradients(sum(packed), parameters)
    largest = max(gradient.norm() for gradient in found.values())
    for name, expected in gradients(sum(alone), parameters).items():
        assert (found[name] - expected).norm() <= 1e-5 * max(float(expected.norm()), 1e-2 * float(largest)), name


def gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(each) if gradient is None else gradient for (name, each), gradient in pairs}


def test_the_packed_sequences_are_those_of_the_samples(family, tmp_path):
    case = Case(family, tmp_path)
    packed = [case.batch["input_ids"][row, columns].tolist() for row, columns in case.paths()]
    made = []
    for sample in case.samples:
        made += [sample.generation.ids, *sample.caption_roots, *sample.hallucinated_roots]
    assert sorted(packed) == sorted(made)


def test_the_encoder_writes_what_the_stock_processor_writes(family):
    if family.template != "chat":
        pytest.skip("its records are not rendered with a chat template")
    encoder = encoder_of(family)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "describe the image ."}]
    text = family.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    stock = family.processor(images=[family.images], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    written = [encoder.images.ids(image.size, count=2) for image in family.images]
    sequence = encoder.conversation_sequence([("user", "<image>\n<image>\ndescribe the image .")], written)
    bos = encoder.bos if stock[: len(encoder.bos)] != encoder.bos else []
    assert sequence.ids == bos + stock
    for (start, end), count in zip(
        sequence.image_spans, family.facts.tokens_beside or family.facts.tokens, strict=True
    ):
        assert sequence.ids[start:end].count(family.image_id) == count


def test_groups_hold_every_parameter_once(family):
    groups = find_adapter(family.model).groups()
    seen = [id(p) for parts in groups.values() for part in parts for p in part.parameters()]
    tied = family.facts.tied
    assert len(seen) - tied == len(set(seen)) == len(list(family.model.parameters()))


def test_a_batch_without_images_reaches_the_same_parameters(family, tmp_path):
    """Every rank calls the same modules, whatever its batch holds."""
    reached = []
    for kept in (slice(None), slice(2, 3)):
        case = Case(family, tmp_path, kept)
        case.model(**case.batch).loss.backward()
        reached.append({name for name, p in case.backbone.named_parameters() if p.grad is not None})
    assert reached[0] == reached[1]
    assert any(name.startswith(family.facts.connector) for name in reached[0])


def test_a_frozen_tower_stores_no_graph_and_the_projector_still_trains(family, tmp_path):
    case = Case(family, tmp_path)
    groups = case.model.adapter.groups()
    for part in groups["vision"]:
        part.requires_grad_(False)
    case.model.train()
    assert not any(module.training for part in groups["vision"] for module in part.modules())
    case.model(**case.batch).loss.backward()
    assert any(p.grad is not None and p.grad.any() for part in groups["projector"] for p in part.parameters())


def test_features_that_are_not_as_many_as_the_image_tokens_are_refused(family, tmp_path, monkeypatch):
    case = Case(family, tmp_path)
    adapter = case.model.adapter
    check_image_tokens(case.backbone, case.encoder)
    whole = adapter.image_embeddings
    monkeypatch.setattr(adapter, "image_embeddings", lambda inputs: whole(inputs)[:-1])
    with pytest.raises(ValueError, match="wrong image-token count"):
        case.model.encode(case.batch)
