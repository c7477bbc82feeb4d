"""Promises about training samples that cannot be read: which sample stands in, that no other moves, what is counted."""

import json
import logging
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from hacl.config import ConfigError, load_config
from hacl.data.bad_samples import REASONS, SkipNotes, TolerantDataset, reason_of
from hacl.data.dataset import TrainingDataset
from hacl.data.records import read_records
from hacl.data.sources import open_source
from hacl.data.stream import RecordStream
from hacl.data.stream_dataset import StreamDataset
from hacl.training import checks, streaming
from hacl.training.build import build_encoder, load_processor
from hacl.training.skipped import SkippedSamples
from tests.tiny import write_tiny_records

COUNT, TEXT_ONLY = 16, 4
DAMAGED, MISSING, OUTSIDE, NOT_A_RECORD, TWO_MARKS = 3, 7, 9, 11, 17
BAD = {
    DAMAGED: "damaged_image", MISSING: "missing_image", OUTSIDE: "refused_image", NOT_A_RECORD: "bad_record",
    TWO_MARKS: "bad_text",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of which those in BAD cannot be read. Their ids are their places."""
    folder = tmp_path_factory.mktemp("bad")
    path = write_tiny_records(folder, COUNT, text_only=TEXT_ONLY)
    rows = [json.loads(line) | {"id": str(n)} for n, line in enumerate(path.read_text().splitlines())]
    (folder / "images" / f"{DAMAGED}.png").write_bytes((folder / "images" / f"{DAMAGED}.png").read_bytes()[:60])
    (folder / "images" / f"{MISSING}.png").unlink()
    shutil.copy(folder / "images" / "0.png", folder.parent / "outside.png")
    rows[OUTSIDE]["image"] = "../outside.png"
    rows[TWO_MARKS]["conversations"][0]["value"] = "<image> <image> ?"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[NOT_A_RECORD]["captions"] = 5
    (folder / "stream.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def encoder(tiny_llava):
    config = load_config(None, [f"model.path={tiny_llava}", "data.template=chat"])
    return build_encoder(load_processor(config.model), config.data)


def strict(folder, encoder, records=None):
    objective = load_config(None, []).objective
    records = read_records(folder / "records.jsonl") if records is None else records
    return TrainingDataset(records, encoder, image_root=folder, objective=objective, seed=0)


def streamed(folder, encoder, *, ranks=1, rank=0, known=True, tolerant=True):
    made = RecordStream(
        open_source(str(folder / "stream.jsonl")), batch_size=4 // ranks, seed=0, rank=rank, ranks=ranks, block=8
    )
    return StreamDataset(
        made, strict(folder, encoder, []), made.batches_per_epoch() if known else None, tolerant=tolerant
    )


def content(sample):
    return (
        sample.record_id,
        tuple(sample.caption_keys),
        sample.skipped,
        [image["pixel_values"].sum().item() for image in sample.pixels],
    )


def test_a_bad_sample_is_replaced_by_a_good_one_of_the_same_kind_and_no_other_moves(folder, encoder):
    plain, tolerant = strict(folder, encoder), TolerantDataset(strict(folder, encoder))
    for epoch in (0, 1):
        plain.set_epoch(epoch), tolerant.set_epoch(epoch)
        for place in range(COUNT + TEXT_ONLY):
            sample = tolerant[place]
            if place in BAD and place != NOT_A_RECORD:
                assert sample.skipped[0] == BAD[place] and f"record '{place}'" in sample.skipped[1]
                assert int(sample.record_id) not in BAD or int(sample.record_id) == NOT_A_RECORD
                assert sample.index == int(sample.record_id), "what a message about this sample must name"
                assert bool(sample.image_paths) == (place < COUNT), "a batch of one kind stays one"
            else:
                assert content(sample) == content(plain[place]) and sample.skipped is None


def test_the_file_is_named_where_an_image_is_at_fault(folder, encoder):
    tolerant = TolerantDataset(strict(folder, encoder))
    assert "3.png" in tolerant[DAMAGED].skipped[1] and "7.png" in tolerant[MISSING].skipped[1]


def test_the_replacement_depends_on_seed_epoch_and_place_alone(folder, encoder):
    def chosen(seed, epoch, place):
        dataset = strict(folder, encoder)
        dataset.seed = seed
        dataset.set_epoch(epoch)
        return TolerantDataset(dataset)[place].record_id

    keys = [(seed, epoch, place) for seed in (0, 1) for epoch in range(4) for place in (DAMAGED, MISSING)]
    found = {key: chosen(*key) for key in keys}
    assert found == {key: chosen(*key) for key in reversed(keys)}
    for axis in range(3):
        groups = {}
        for key, name in found.items():
            groups.setdefault(key[:axis] + key[axis + 1 :], set()).add(name)
        assert any(len(names) > 1 for names in groups.values()), "it must not always be the same record"


@pytest.mark.parametrize("known", [True, False], ids=["known length", "unknown length"])
def test_a_bad_row_of_a_stream_is_replaced_whatever_the_workers_and_the_first_number(folder, encoder, known):
    def read(numbers, workers=0):
        made = streamed(folder, encoder, known=known)
        loader = DataLoader(made, batch_sampler=[[n] for n in numbers], num_workers=workers, collate_fn=list)
        return [[content(sample) for sample in batch] for batch in loader]

    whole = read(range(10))
    skipped = [note for batch in whole for _, _, note, _ in batch if note]
    assert sorted(reason for reason, _ in skipped) == sorted(list(BAD.values()) * 2), "each once per epoch"
    assert all(int(name) not in BAD for batch in whole for name, *_ in batch)
    assert read(range(10), workers=2) == whole
    assert [read([n])[0] for n in (7, 2)] == [whole[7], whole[2]], "resuming reads the same"
    good = [name for batch in whole[:5] for name, _, note, _ in batch if not note]
    assert sorted(good, key=int) == [str(n) for n in range(COUNT + TEXT_ONLY) if n not in BAD], "nothing lost or moved"


def test_ranks_replace_as_one_process_would_and_others_stay_where_they_were(folder, encoder):
    alone = [content(sample) for sample in streamed(folder, encoder).__getitems__([0])]
    ranks = [[content(s) for s in streamed(folder, encoder, ranks=2, rank=r).__getitems__([0])] for r in (0, 1)]
    assert [ranks[place % 2][place // 2] for place in range(4)] == alone


def test_without_the_share_the_first_bad_sample_is_an_error(folder, encoder):
    with pytest.raises(ValueError, match="record '3': .*3.png: truncated"):
        strict(folder, encoder)[DAMAGED]
    dataset = streamed(folder, encoder, tolerant=False)
    with pytest.raises((ValueError, FileNotFoundError)):
        [dataset.__getitems__([number]) for number in range(5)]


def test_a_machine_that_fails_is_no_bad_sample(folder, encoder, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hacl.data.dataset.load_image", fails)
    with pytest.raises(OSError, match="record '0': .*Input/output error"):
        TolerantDataset(strict(folder, encoder))[0]


def test_a_data_set_of_nothing_but_bad_samples_ends_in_an_error_that_names_the_first(folder, encoder):
    bad = [record for record in read_records(folder / "records.jsonl") if int(record.id) in (DAMAGED, MISSING, OUTSIDE)]
    with pytest.raises(ValueError, match="record '3'.*none of up to 64 records"):
        TolerantDataset(strict(folder, encoder, bad))[0]


def test_every_reason_is_told_from_the_error_and_its_causes():
    wrapped = ValueError("record")
    wrapped.__cause__ = FileNotFoundError("file")
    assert reason_of(wrapped) == "missing_image" and reason_of(ValueError("text")) == "bad_text"
    assert set(BAD.values()) == set(REASONS)


# Counting


def batch_of(samples, *notes):
    batch = {"sample_index": torch.arange(samples)}
    return batch | {"skipped": list(notes)} if notes else batch


def test_notes_leave_the_batch_before_a_model_sees_it():
    plain = SkipNotes(lambda samples: {"sample_index": torch.zeros(2)})
    notes = [("bad_text", "record 'a'")]
    good, bad = (type("S", (), {"skipped": found, "unlabelled": ""})() for found in (None, notes[0]))
    assert set(plain([good, good])) == {"sample_index"} and plain([good, bad])["skipped"] == notes
    counter, batch = SkippedSamples(0.5, 8), plain([good, bad])
    assert counter.take([batch]) == [2, 0, 0, 0, 0, 1, 0] and "skipped" not in batch


def test_samples_without_a_token_to_learn_are_counted_apart_and_stop_a_run_above_their_share(caplog, capsys):
    message = "record 'x': data.max_length=9 cuts off the whole answer"
    sample = type("S", (), {"skipped": None, "unlabelled": message})()
    batch = SkipNotes(lambda samples: {"sample_index": torch.zeros(1)})([sample])
    counter = trained(SkippedSamples(0.0, 100, 0.02), 10**3)
    with caplog.at_level(logging.WARNING):
        assert counter.take([batch]) == [1, 0, 0, 0, 0, 0, 1]
    assert "no token to learn" in caplog.text and message in caplog.text
    assert counter.add([1, 0, 0, 0, 0, 0, 2]) is None, "they are no unreadable samples, of which none is allowed"
    assert counter.metrics() == {"unlabelled": 2}
    counter.on_train_end(None, type("S", (), {"is_world_process_zero": True}), None)
    assert "of 1 samples since the run began: 2 unlabelled" in capsys.readouterr().out
    problem = counter.add([1, 0, 0, 0, 0, 0, 1])
    assert "data.max_unlabelled_fraction=0.02 of 100" in problem and message in problem
    short = trained(SkippedSamples(0.0, 100, 0.02), 3)
    assert short.add([6, 0, 0, 0, 0, 0, 2]) is None, (
        "a run of six samples may draw both of the two allowed in a hundred"
    )


def trained(counter, max_steps=100, saved=None):
    from types import SimpleNamespace

    args = SimpleNamespace(per_device_train_batch_size=2, world_size=1, gradient_accumulation_steps=1)
    state = SimpleNamespace(max_steps=max_steps, stateful_callbacks=saved or {})
    counter.on_train_begin(args, state, None)
    return counter


@pytest.mark.parametrize("epoch, max_steps, allowed_bad", [(100, 100, 10), (100, 20, 4), (None, 30, 6), (10, 100, 1)])
def test_the_share_is_of_all_of_an_epoch_once_it_has_begun_or_of_a_shorter_run(epoch, max_steps, allowed_bad):
    counter = trained(SkippedSamples(0.1, epoch), max_steps)
    for _ in range(allowed_bad):
        assert counter.add([1, 1, 0, 0, 0, 0, 0]) is None
    problem = counter.add([1, 0, 1, 0, 0, 0, 0])
    assert "data.max_bad_fraction=0.1" in problem and f"{allowed_bad} missing_image, 1 damaged_image" in problem
    assert counter.metrics() == {"skipped/missing_image": allowed_bad}, "a step that is not taken is not counted"


def test_a_share_that_holds_over_many_epochs_does_not_stop_a_run():
    counter = trained(SkippedSamples(0.1, 10), 10**6)
    assert all(counter.add([10, 1, 0, 0, 0, 0, 0]) is None for _ in range(500))
    assert counter.add([10, 2, 0, 0, 0, 0, 0]) is not None
    early = trained(SkippedSamples(0.1, 10), 6)  # 12 samples
    assert early.add([10, 1, 0, 0, 0, 0, 0]) is None
    assert early.add([1, 1, 0, 0, 0, 0, 0]) is None, "which comes first in an epoch is chance"


def test_counters_go_on_after_a_resume_and_begin_at_nothing_in_a_new_run():
    first = trained(SkippedSamples(0.5, 100))
    first.add([50, 3, 0, 0, 0, 2, 0])
    saved = {"SkippedSamples": json.loads(json.dumps(first.state()))}
    resumed = trained(SkippedSamples(0.5, 100), saved=saved)
    assert resumed.metrics() == first.metrics() == {"skipped/missing_image": 3, "skipped/bad_text": 2}
    assert resumed.samples == 50
    assert trained(SkippedSamples(0.5, 100)).metrics() == {}, "a checkpoint made without it"


def test_the_log_names_the_first_of_each_reason_and_then_ever_fewer(caplog):
    counter = SkippedSamples(0.5, None)
    with caplog.at_level(logging.WARNING):
        for number in range(1, 3001):
            counter.take([batch_of(1, ("damaged_image", f"record '{number}': {number}.png: truncated"))])
        counter.take([batch_of(1, ("bad_text", "record 'x'"))])
    lines = [line for line in caplog.messages if "damaged_image" in line]
    assert all(f"record '{n}': {n}.png" in lines[n - 1] for n in range(1, 6))
    assert 10 < len(lines) < 40 and sum("bad_text" in line for line in caplog.messages) == 1


# Before training


def test_checks_before_training_count_what_the_share_allows_and_name_the_first(folder, encoder, capsys):
    records = read_records(folder / "records.jsonl")
    checks.check_images(records, folder, max_bad_fraction=0.2)
    assert "3 of 16 image(s) cannot be read" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"data.max_bad_fraction=0.1 of 16 image\(s\).*record '3'"):
        checks.check_images(records, folder, max_bad_fraction=0.1)
    with pytest.raises(ValueError, match="^record '3'"):
        checks.check_images(records, folder)
    dataset = strict(folder, encoder, records)
    dataset.load_pixels = False
    checks.check_samples(dataset, "f", max_bad_fraction=0.05)
    assert "1 of 20 record(s) yield no sample" in capsys.readouterr().out
    with pytest.raises(ValueError, match="record '17'"):
        checks.check_samples(dataset, "f")


def test_the_head_of_a_stream_leaves_out_bad_rows_up_to_the_share(folder):
    source = open_source(str(folder / "stream.jsonl"))
    assert len(streaming.read_head(source, 100, 0.05)) == 19
    for share in (0.0, 0.04):
        with pytest.raises(ValueError, match=r"stream\.jsonl:12"):
            streaming.read_head(source, 100, share)


@pytest.mark.parametrize("value", ["-0.1", "1", "2"])
def test_a_share_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match="data.max_bad_fraction"):
        load_config(None, [f"data.max_bad_fraction={value}"])


def test_features_cannot_be_cached_of_images_that_may_be_bad():
    with pytest.raises(ConfigError, match="cache_vision_features.*max_bad_fraction"):
        load_config(None, ["data.max_bad_fraction=0.1", "train.cache_vision_features=true"])
