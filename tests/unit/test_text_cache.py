"""Promises of the text-state cache: made once, resumed after a kill, the model's own states, refused when stale."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hacl.config import ConfigError, load_config
from hacl.data import text_cache
from hacl.data.text_cache import StaleCacheError, TextCache, open_for_writing, write_shard
from hacl.training import cache_text, caches
from hacl.training.objective import text_states
from hacl.training.run import build_model, read_inputs, run
from tests.tiny import write_tiny_records

ROOT = Path(__file__).parents[2]
META = {"kind": "test", "width": 2, "dtype": "float32"}


def roots_of(numbers):
    return [[number, 2, 3] for number in numbers]


def rows_of(numbers):
    return torch.tensor([[float(number), 0.5] for number in numbers])


def test_rows_are_found_by_their_token_ids_over_all_shards(tmp_path):
    cache = open_for_writing(tmp_path, META)
    for numbers in ([5, 1], [9], [3, 7, 2]):
        write_shard(tmp_path, roots_of(numbers), rows_of(numbers))
    assert len(cache) == 0
    cache.refresh()
    assert len(cache) == 6 and cache.holds(roots_of([2, 4])) == [True, False]
    assert torch.equal(TextCache(tmp_path, META).lookup(roots_of([9, 2, 9, 5])), rows_of([9, 2, 9, 5]))
    with pytest.raises(ValueError, match=r"lacks the state.*cache_text\.py"):
        cache.lookup(roots_of([4]))


def test_texts_whose_first_64_bits_agree_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "text_key", lambda root: (17, root[0]))
    open_for_writing(tmp_path, META)
    write_shard(tmp_path, roots_of([1, 2, 3]), rows_of([1, 2, 3]))
    cache = TextCache(tmp_path, META)
    assert torch.equal(cache.lookup(roots_of([3, 1])), rows_of([3, 1])) and cache.holds(roots_of([4])) == [False]


def test_a_cache_of_something_else_is_refused_and_says_what_differs(tmp_path):
    open_for_writing(tmp_path / "a", META)
    with pytest.raises(StaleCacheError, match="another layer, width"):
        TextCache(tmp_path / "a", {**META, "layer": 3, "width": 4})
    with pytest.raises(FileNotFoundError, match="cache_text"):
        TextCache(tmp_path / "none", META)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.txt").write_text("x")
    with pytest.raises(StaleCacheError, match="not empty"):
        open_for_writing(tmp_path / "b", META)


def test_an_unfinished_shard_is_unseen_and_removed(tmp_path):
    open_for_writing(tmp_path, META)
    unfinished = tmp_path / ".states-12.safetensors.999999999.partial"
    unfinished.write_bytes(b"half")
    assert len(open_for_writing(tmp_path, META)) == 0 and not unfinished.exists()


@pytest.fixture
def configured(tiny_model, tmp_path):
    def build(*overrides, count=6):
        records = write_tiny_records(tmp_path / "records", count)
        settings = [f"model.path={tiny_model}", f"data.path={records}", f"train.output_dir={tmp_path / 'run'}"]
        return load_config(None, [*settings, *overrides])

    return build


def test_a_cache_gives_the_states_of_the_model_and_is_not_made_twice(configured, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    config = configured()
    first = cache_text.cache_texts(config, folder, batch=3)
    assert (first.kept, first.computed) == (0, first.texts) and first.texts > 6
    config.train.text_cache = str(folder)
    inputs = read_inputs(config)
    model = build_model(config, inputs)
    stores = caches.prepare(config, inputs, model)
    texts = [text for record in inputs.records for text in (*record.captions, record.hallucinated[0].text)]
    roots = [inputs.encoder.root(text) for text in texts]
    expected = text_states(model, roots, encoder=inputs.encoder)
    torch.testing.assert_close(stores.texts.lookup(roots), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(cache_text, "text_states", lambda *a, **k: pytest.fail("computed again"))
    again = cache_text.cache_texts(config, folder)
    assert (again.kept, again.computed) == (first.texts, 0)


def test_records_that_are_added_are_computed_alone(configured, tmp_path):
    first = cache_text.cache_texts(configured(), tmp_path / "texts")
    more = cache_text.cache_texts(configured(count=12), tmp_path / "texts")
    assert more.kept == first.texts and more.computed == more.texts - first.texts > 0


def test_what_was_computed_before_an_end_is_kept(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_text, "SHARD_BYTES", 32 * 4 * 2)
    monkeypatch.setattr(cache_text, "LOOK_AHEAD", 4)
    real, calls = cache_text.text_states, []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(cache_text, "text_states", stopping)
    with pytest.raises(KeyboardInterrupt):
        cache_text.cache_texts(configured(), tmp_path / "texts", batch=2)
    report = cache_text.cache_texts(configured(), tmp_path / "texts", batch=2)
    assert report.kept == 6 and report.computed == report.texts - 6


@pytest.mark.parametrize(
    "change", ["objective.layer=1", "objective.text_pool=mean", "data.max_caption_length=9", "tokenizer", "weights"]
)
def test_a_stale_cache_stops_a_run_before_it_trains(configured, tiny_model, tmp_path, change):
    folder = tmp_path / "texts"
    cache_text.cache_texts(configured(), folder)
    overrides = [change]
    if "=" not in change:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, change: "of another"}))
        overrides = []
    named = change.split("=")[0].split(".")[-1]
    named = {"text_pool": "pool", "max_caption_length": "template"}.get(named, named)
    with pytest.raises(StaleCacheError, match=f"another {named}"):
        run(configured(*overrides, f"train.text_cache={folder}", "train.max_steps=1"))


def test_a_decoder_that_trains_cannot_use_or_make_a_cache(configured, tmp_path):
    trained = ["model.lora.rank=2", "model.learning_rate.llm=1e-4"]
    with pytest.raises(ConfigError, match="frozen decoder"):
        cache_text.cache_texts(configured(*trained), tmp_path / "texts")
    cache_text.cache_texts(configured(), tmp_path / "texts")
    config = configured(*trained)
    config.train.text_cache = str(tmp_path / "texts")  # which a configuration of such rates refuses to name
    inputs = read_inputs(config)
    with pytest.raises(ConfigError, match="the decoder trains"):
        caches.prepare(config, inputs, build_model(config, inputs))
    config = configured("objective.contrastive_weight=0", f"train.text_cache={tmp_path / 'texts'}")
    with pytest.raises(ConfigError, match="reads no states"):
        caches.prepare(config, inputs, build_model(config, inputs))


def test_training_from_the_cache_is_training(configured, tmp_path):
    command = [sys.executable, "data_prep/cache_text.py", "--output", str(tmp_path / "texts")]
    plain = configured("train.max_steps=2", "train.per_device_batch_size=2", "log.steps=1")
    for text in (f"model.path={plain.model.path}", f"data.path={plain.data.path[0]}"):
        command += ["--set", text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "computed" in done.stdout, done.stderr
    losses = []
    for name, value in (("live", None), ("cached", str(tmp_path / "texts"))):
        plain.train.text_cache, plain.train.output_dir = value, str(tmp_path / name)
        plain.train.cache_text_states = False
        run(plain)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-5)
