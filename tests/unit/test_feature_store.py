"""Promises of the feature store: what was captured comes back, whatever was killed, cut off or mixed up in between."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from hacl.representations import FeatureStore, Sample, paired
from hacl.representations import capture as module_of_capture
from hacl.representations import manifest as module_of_manifest
from hacl.representations import readout as module_of_readout
from hacl.representations import store as module_of_store
from hacl.representations.capture import capture
from hacl.representations.store import StoreWriter
from tests.tiny_families import sentences, tiny_text_model

CONFIG = {"hidden_size": 3, "num_layers": 4, "layers": ["0", "final_norm"]}
ROW = {"image_id": "g", "image": None, "selector": "all", "position": 0, "token_id": 1, "token": "a", "word": None}
TEXTS = sentences(12)
SAMPLES = [Sample(f"n{i}", None, TEXTS[i % 12], TEXTS[5 * i % 11], f"g{i // 3}") for i in range(80)]


@pytest.fixture(scope="module")
def text():
    return tiny_text_model()


def run(text, out, samples=SAMPLES, **options):
    options = {"layers": [0, -1], "select": ["last_prompt", "at:the", "mean_generated"], "batch_size": 2,
               "part_bytes": 6000, "progress": False, **options}  # fmt: skip
    return capture(*text, samples, out=out, **options)


def content(folder):
    """Every byte that a reader sees."""
    store = FeatureStore(folder)
    return (folder / "rows.jsonl").read_bytes(), {name: store.read(name).tobytes() for name in store.layers}


def rows_of(name, count):
    return [{**ROW, "sample": name, "key": f"all#{i}", "text": "", "prompt_hash": "x"} for i in range(count)]


def write(folder, features, dtype=torch.float32, sizes=(4, 1, 6)):
    writer = StoreWriter(folder, CONFIG, CONFIG["layers"], part_bytes=1)
    done = 0
    for number, size in enumerate(sizes):
        part = {layer: values[done : done + size].to(dtype) for layer, values in features.items()}
        writer.add(rows_of(f"s{number}", size), part)
        writer.commit({"samples": number + 1})
        done += size
    writer.finish(samples=len(sizes), missing={})
    return FeatureStore(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_of_every_dtype_come_back_as_they_were_stored(dtype, tmp_path):
    draw = torch.Generator().manual_seed(0)
    features = {layer: torch.randn(11, 3, generator=draw) for layer in CONFIG["layers"]}
    store = write(tmp_path / "s", features, dtype)
    assert store.layers == ("0", "final_norm") and len(store) == 11 and len(store.rows) == 11
    assert [row.row for row in store.rows] == list(range(11))
    for layer in store.layers:
        expected = features[layer].to(dtype).float().numpy()
        assert np.array_equal(store.read(layer), expected) and store.read(layer).dtype == np.float32
        index = [10, 0, 4, 4, 3, 5]
        assert np.array_equal(store.read(layer, index), expected[index])
        assert np.array_equal(np.concatenate(list(store.blocks(layer, 2))), expected)
        assert max(map(len, store.blocks(layer, 2))) == 2
        assert store.read(layer, []).shape == (0, 3)
    with pytest.raises(IndexError, match="0 to 10"):
        store.read(0, [11])
    with pytest.raises(ValueError, match="stored: 0, final_norm"):
        store.read(1)


def test_opening_reads_no_features_and_a_slice_reads_one_part(tmp_path, monkeypatch):
    store = write(tmp_path / "s", {layer: torch.zeros(11, 3) for layer in CONFIG["layers"]})
    opened = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda path, **options: opened.append(path.name) or memmap(path, **options))
    FeatureStore(tmp_path / "s")
    assert opened == []
    store.read(0, [5, 10])
    assert opened == ["part-00002.safetensors"]


def test_a_kill_at_any_write_loses_nothing_that_a_resume_does_not_make_again_to_the_byte(text, tmp_path, monkeypatch):
    run(text, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    parts = sorted(path.name for path in (tmp_path / "whole/features/layer_0").iterdir())
    assert len(parts) > 1, "several parts, or the test shows little"
    kill = Kill(monkeypatch)
    run(text, tmp_path / "counted")
    total, reads = kill.count, {}
    window = module_of_capture.BatchReader.window

    def counted(self, samples):
        reads[number] = reads.get(number, 0) + (kill.at is None)
        return window(self, samples)

    monkeypatch.setattr(module_of_capture.BatchReader, "window", counted)
    for number in range(total):
        out = tmp_path / f"killed-{number}"
        kill.arm(number)
        with pytest.raises(KeyboardInterrupt):
            run(text, out)
        with pytest.raises((ValueError, FileNotFoundError)):
            FeatureStore(out)
        kill.arm(None)
        run(text, out)
        assert content(out) == expected, f"killed at write {number}"
        assert sorted(path.name for path in (out / "features/layer_0").iterdir()) == parts
        assert (out / "readout.json").read_bytes() == (tmp_path / "whole/readout.json").read_bytes()
    resumed = [reads[number] for number in range(total)]
    assert resumed == sorted(resumed, reverse=True) and set(resumed) == {0, 1, 2, 3}, "committed windows stay"


class Kill:
    """Stops the process (so to speak) in the middle of write number `at`, leaving half a temporary file."""

    def __init__(self, monkeypatch):
        self.original = module_of_manifest.write_bytes
        self.arm(None)
        for module in (module_of_manifest, module_of_store, module_of_readout):
            monkeypatch.setattr(module, "write_bytes", self.write)

    def arm(self, at):
        self.at, self.count = at, 0

    def write(self, path, content):
        if self.count == self.at:
            path.with_name(f".{path.name}.1.tmp").write_bytes(content[: len(content) // 2])
            raise KeyboardInterrupt
        self.count += 1
        self.original(path, content)


def test_what_was_killed_before_its_manifest_starts_again(text, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".manifest.json.1.tmp").write_text("{")
    run(text, tmp_path / "a")
    run(text, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_further_samples_are_appended_and_nothing_is_read_twice(text, tmp_path, monkeypatch):
    run(text, tmp_path / "whole", samples=SAMPLES[:64])
    run(text, tmp_path / "steps", samples=SAMPLES[:32])
    seen = []
    window = module_of_capture.BatchReader.window
    monkeypatch.setattr(
        module_of_capture.BatchReader, "window", lambda self, samples: seen.extend(samples) or window(self, samples)
    )
    run(text, tmp_path / "steps", samples=SAMPLES[:64])
    assert seen == SAMPLES[32:64]
    assert content(tmp_path / "steps") == content(tmp_path / "whole")
    run(text, tmp_path / "steps", samples=SAMPLES[:64])
    assert seen == SAMPLES[32:64] and FeatureStore(tmp_path / "steps").manifest["samples"] == 64


def test_other_samples_or_settings_are_refused_by_name(text, tmp_path):
    run(text, tmp_path / "a", samples=SAMPLES[:8])
    before = content(tmp_path / "a")
    for options, message in [
        ({"samples": SAMPLES[1:9]}, "first 8 samples were others"),
        ({"samples": SAMPLES[:4]}, "first 8 samples were others"),
        ({"samples": [Sample(s.id, s.image, s.prompt, "the", s.image_id) for s in SAMPLES[:8]]}, "answer differ"),
        ({"select": "last_prompt"}, "selectors"),
        ({"layers": [0, 1]}, "layers"),
        ({"batch_size": 3}, "batch_size"),
        ({"dtype": "float16"}, "dtype: 'float32' there, 'float16' here"),
        ({"resume": False}, "already"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(text, tmp_path / "a", **{"samples": SAMPLES[:8], **options})
    with pytest.raises(ValueError, match="model.weights"):
        run(tiny_text_model(seed=1), tmp_path / "a", samples=SAMPLES[:8])
    assert content(tmp_path / "a") == before


def test_a_part_that_is_cut_off_or_missing_is_named(text, tmp_path):
    run(text, tmp_path / "a")
    part = tmp_path / "a/features/layer_2/part-00001.safetensors"
    whole = part.read_bytes()
    for damaged in (whole[:-1], whole[:20], whole + b"x", b""):
        part.write_bytes(damaged)
        with pytest.raises(ValueError, match="layer_2/part-00001.safetensors"):
            FeatureStore(tmp_path / "a")
    part.unlink()
    with pytest.raises(FileNotFoundError, match="layer_2/part-00001.safetensors"):
        FeatureStore(tmp_path / "a")
    part.write_bytes(save({"features": torch.zeros(3, 32)}))
    with pytest.raises(ValueError, match="layer_2/part-00001.safetensors"):
        FeatureStore(tmp_path / "a")
    part.write_bytes(whole)
    table = tmp_path / "a/rows.jsonl"
    table.write_bytes(table.read_bytes()[:-200])
    with pytest.raises(ValueError, match="rows.jsonl"):
        _ = FeatureStore(tmp_path / "a").rows
    with pytest.raises(ValueError, match="rows.jsonl"):
        run(text, tmp_path / "a")


def test_what_is_no_finished_store_is_refused(text, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        FeatureStore(tmp_path)
    run(text, tmp_path / "a", samples=SAMPLES[:4])
    path = tmp_path / "a/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(ValueError, match="did not finish"):
        FeatureStore(tmp_path / "a")
    assert len(FeatureStore(tmp_path / "a", partial=True)) == manifest["rows"]
    path.write_text(json.dumps({**manifest, "schema": "hacl-features-0"}))
    with pytest.raises(ValueError, match="schema"):
        FeatureStore(tmp_path / "a")


def test_the_manifest_says_what_made_the_features(text, tmp_path):
    manifest = FeatureStore(run(text, tmp_path / "a", samples=SAMPLES[:4])).manifest
    assert manifest["complete"] is True and manifest["rows"] == len(FeatureStore(tmp_path / "a"))
    assert manifest["layers"] == ["0", "2"] and manifest["hidden_size"] == 32 and manifest["num_layers"] == 3
    assert manifest["selectors"] == ["last_prompt", "at:the", "mean_generated"]
    assert {"torch", "transformers"} <= set(manifest["versions"])
    for key in ("schema", "model", "dtype", "tokenizer_hash", "template_hash", "mode", "decoding", "seed", "missing"):
        assert key in manifest
    assert manifest["missing"]["at:the"] == sum("the" not in sample.answer.split() for sample in SAMPLES[:4])


def test_stores_join_by_sample_and_key_and_count_what_has_no_partner(text, tmp_path):
    a = FeatureStore(run(text, tmp_path / "a", samples=SAMPLES[:20]))
    b = FeatureStore(run(text, tmp_path / "b", samples=SAMPLES[9:2:-1]))
    pairs = paired(a, b)
    assert {row.sample for row in pairs.rows} == {f"n{i}" for i in range(3, 10)}
    assert len(pairs) == len(b) and pairs.dropped_b == 0 and pairs.dropped_a == len(a) - len(b)
    for i, j, row in zip(pairs.index_a, pairs.index_b, pairs.rows, strict=True):
        assert (a.rows[i].sample, a.rows[i].key) == (b.rows[j].sample, b.rows[j].key) == (row.sample, row.key)
    np.testing.assert_allclose(a.read(0, pairs.index_a), b.read(0, pairs.index_b), atol=1e-5)
    assert paired(b, a).dropped_b == pairs.dropped_a


def test_stores_that_cannot_be_compared_are_not_joined(text, tmp_path):
    model, tokenizer = text
    a = FeatureStore(run(text, tmp_path / "a", samples=SAMPLES[:8]))
    others = {
        "selectors": {"select": ["last_prompt"]},
        "mode": {"mode": "free", "max_new_tokens": 2},
        "occurrences": {"occurrences": "first"},
    }
    for key, options in others.items():
        b = FeatureStore(run(text, tmp_path / key, samples=SAMPLES[:8], **options))
        with pytest.raises(ValueError, match=key):
            paired(a, b)
        assert len(paired(a, b, force=True)) > 0
    other = tiny_text_model()[1]
    other.add_tokens(["zebra"])
    b = FeatureStore(run((model, other), tmp_path / "tokenizer", samples=SAMPLES[:8]))
    with pytest.raises(ValueError, match="tokenizer_hash"):
        paired(a, b)
    texts = [Sample(s.id, s.image, s.prompt, s.answer + " red", s.image_id) for s in SAMPLES[:8]]
    with pytest.raises(ValueError, match="read different texts for sample 'n0'"):
        paired(a, FeatureStore(run(text, tmp_path / "texts", samples=texts)))
    prompts = [Sample(s.id, s.image, s.prompt + " red", s.answer, s.image_id) for s in SAMPLES[:8]]
    with pytest.raises(ValueError, match="sample 'n0' has another prompt"):
        paired(a, FeatureStore(run(text, tmp_path / "prompts", samples=prompts)))


def test_the_template_decides_whether_stores_join(tmp_path):
    model, tokenizer = tiny_text_model()
    tokenizer.chat_template = (
        "{% for m in messages %}USER : {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
    )
    plain = FeatureStore(run((model, tokenizer), tmp_path / "plain", samples=SAMPLES[:4]))
    chat = FeatureStore(run((model, tokenizer), tmp_path / "chat", samples=SAMPLES[:4], template="chat"))
    with pytest.raises(ValueError, match="template_hash"):
        paired(plain, chat)


def test_a_tokenizer_has_one_hash_whatever_it_padded_last(tmp_path):
    from hacl.representations.encoding import RowEncoder

    tokenizer = tiny_text_model()[1]
    before = RowEncoder(tokenizer).tokenizer_hash()
    tokenizer(["a", "a the of"], padding=True, truncation=True, max_length=2)
    assert RowEncoder(tokenizer).tokenizer_hash() == before


def test_an_empty_capture_is_a_store_without_rows(text, tmp_path):
    store = FeatureStore(run(text, tmp_path / "a", samples=[]))
    assert len(store) == 0 and store.rows == [] and store.read(0).shape == (0, 32) and list(store.blocks(0)) == []
    assert len(FeatureStore(run(text, tmp_path / "b", select="at:zebra"))) == 0


def test_no_file_of_a_store_is_a_pickle_or_an_archive(text, tmp_path):
    run(text, tmp_path / "a")
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        start = path.read_bytes()
        assert not start.startswith((b"\x80", b"PK", b"\x1f\x8b")), path
        if path.suffix == ".safetensors":
            length = int.from_bytes(start[:8], "little")
            assert set(json.loads(start[8 : 8 + length])) <= {"features", "lm_head", "norm_weight", "norm_bias"}
        else:
            for line in start.decode().splitlines() if path.suffix == ".jsonl" else [start.decode()]:
                json.loads(line, parse_constant=pytest.fail)


def test_the_memory_of_a_capture_does_not_grow_with_its_rows(text, tmp_path):
    held = []

    class Watching(StoreWriter):
        def add(self, rows, features):
            super().add(rows, features)
            held.append(sum(values.nbytes for kept in self._features.values() for values in kept))

    for count in (32, 80):
        held.clear()
        module_of_capture.StoreWriter = Watching
        try:
            run(text, tmp_path / str(count), samples=SAMPLES[:count])
        finally:
            module_of_capture.StoreWriter = StoreWriter
        assert max(held) < 6000 + 2 * 32 * 4 * 32 * 8, "a part, and one window more"
