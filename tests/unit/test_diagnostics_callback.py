"""Promises of the diagnostics during training: the numbers of the diagnosis, from fixed records, without any draw."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hacl.config import ModelConfig, ObjectiveConfig
from hacl.data.records import HallucinatedCaption, read_records
from hacl.evaluation.diagnostics import entanglement, gap_distances
from hacl.evaluation.inputs import make_encoder
from hacl.evaluation.likelihood import caption_margins
from hacl.evaluation.states import collect_states
from hacl.training.build import load_backbone, load_processor
from hacl.training.diagnostics_callback import StateDiagnostics, summarise, usable_records
from hacl.training.objective import HaclModel
from tests.tiny import write_tiny_records

ARGUMENTS = SimpleNamespace(device=torch.device("cpu"), bf16=False, deepspeed=None)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return read_records(write_tiny_records(folder, 10, text_only=3)), folder


@pytest.mark.parametrize("form", ["in_place", "strict"])
def test_training_shows_the_numbers_that_the_diagnosis_finds(tiny_llava, records, tmp_path, form):
    found, root = records
    config = ModelConfig(path=str(tiny_llava))
    backbone, processor = load_backbone(config).eval(), load_processor(config)
    encoder = make_encoder(processor)
    model = HaclModel(backbone, ObjectiveConfig(form=form))
    callback = StateDiagnostics(
        model, encoder, found, root, paused=None, every=1, count=5, batch_size=2, folder=tmp_path
    )
    measures = callback.measure(ARGUMENTS)
    chosen = usable_records(found, 5)
    states = collect_states(model, encoder, chosen, root, progress=False)
    for stage in ("pre", "post"):
        expected = gap_distances(states[stage])
        expected["state_margin_accuracy"] = entanglement(states[stage], probe=False).metrics["state_margin_accuracy"]
        for name, value in expected.items():
            assert measures[f"{stage}/{name}"] == pytest.approx(value, abs=1e-4), (stage, name)
    margins = caption_margins(backbone, processor, chosen, root, progress=False).metrics
    for theirs, ours in (("margin", "caption_margin"), ("margin_accuracy", "caption_margin_accuracy")):
        assert measures[ours] == pytest.approx(margins[theirs], abs=1e-4)
    assert len(callback.batches) == 3


def test_records_are_cut_down_to_one_caption_and_its_own_edits(records):
    record = next(r for r in records[0] if r.images and r.hallucinated)
    edits = tuple(HallucinatedCaption(f"text {n}", "object", of=n % 2) for n in range(4))
    wide = replace(record, captions=("one", "two"), hallucinated=edits[1:])
    (kept,) = usable_records([wide], 3)
    assert kept.captions == ("two",) and [h.text for h in kept.hallucinated] == ["text 1", "text 3"]
    assert all(h.of == 0 for h in kept.hallucinated)
    with pytest.raises(ValueError, match="log.diagnostic_steps"):
        usable_records([replace(record, hallucinated=())], 3)


def test_one_record_leaves_out_what_needs_two():
    rng = np.random.default_rng(0)
    features = {
        "pre/image": rng.normal(size=(1, 4)),
        "pre/true": rng.normal(size=(1, 4)),
        "pre/hallucinated": rng.normal(size=(1, 2, 4)),
        "usable": np.array([[True, False]]),
        "type": np.array([[1, 0]]),
        "margin": np.array([[0.5, 0.0]]),
    }
    found = summarise(features)
    assert "pre/unmatched_cosine" not in found and found["caption_margin"] == 0.5
    assert "pre/state_margin_accuracy/attribute" in found and "pre/state_margin_accuracy/object" not in found
