"""Promises of the feature and text-state caches."""

import pytest
import torch

from hacl.config import ConfigError, load_config
from hacl.training import caches
from hacl.training.caches import RowStore
from hacl.training.objective import text_states
from hacl.training.run import build_model, build_trainer, read_inputs
from hacl.training.run import run as train
from hacl.training.stopping import Stopped, StopRequest
from tests.tiny import write_tiny_records


def rows_of(keys):
    return torch.tensor([[float(key), 2.0 * float(key)] for key in keys])


def test_rows_are_computed_once_and_read_back_in_the_order_asked(tmp_path):
    asked = []

    def compute(keys):
        asked.extend(keys)
        return rows_of(keys)

    RowStore(tmp_path, {"kind": "test"}).extend(["3", "1", "2", "1"], compute, batch=2)
    store = RowStore(tmp_path, {"kind": "test"})
    store.extend(["1", "2", "3", "4"], compute, batch=2)
    assert sorted(asked) == ["1", "2", "3", "4"]
    assert torch.equal(RowStore(tmp_path, {"kind": "test"}).rows(["4", "1", "4"]), rows_of(["4", "1", "4"]))


def test_a_cache_of_something_else_is_refused(tmp_path):
    RowStore(tmp_path, {"weights": "a"}).extend(["1"], rows_of, batch=1)
    with pytest.raises(ValueError, match="made from something else"):
        RowStore(tmp_path, {"weights": "b"})


def test_what_was_computed_before_an_error_is_kept(tmp_path, monkeypatch):
    """Whole shards, and what was pending when the error came."""
    monkeypatch.setattr(caches, "SHARD_BYTES", 16)

    def compute(keys):
        if "5" in keys:
            raise ValueError("damaged image")
        return rows_of(keys)

    with pytest.raises(ValueError, match="damaged image"):
        RowStore(tmp_path, {"kind": "test"}).extend(["1", "2", "3", "4", "5"], compute, batch=1)
    kept = RowStore(tmp_path, {"kind": "test"})
    assert torch.equal(kept.rows(["4", "1"]), rows_of(["4", "1"])) and "5" not in kept


def test_a_shard_without_its_list_of_keys_is_unseen(tmp_path):
    RowStore(tmp_path, {"kind": "test"}).extend(["1"], rows_of, batch=1)
    next(tmp_path.glob("*.json")).unlink()
    assert "1" not in RowStore(tmp_path, {"kind": "test"})


def test_two_runs_may_extend_one_folder(tmp_path):
    first, second = RowStore(tmp_path, {"kind": "test"}), RowStore(tmp_path, {"kind": "test"})
    first.extend(["1", "2"], rows_of, batch=2)
    second.extend(["2", "3"], rows_of, batch=2)
    assert torch.equal(RowStore(tmp_path, {"kind": "test"}).rows(["1", "3"]), rows_of(["1", "3"]))


def test_another_feature_selection_is_another_cache(run):
    """The same weights with another strategy or layer give other features."""
    config, inputs, model = run()
    if not hasattr(model.adapter.model.config, "vision_feature_select_strategy"):
        pytest.skip("the family selects nothing")
    before = caches.prepare(config, inputs, model).features._store.folder
    settings = model.adapter.model.config
    settings.vision_feature_select_strategy = {"default": "full", "full": "default"}[
        settings.vision_feature_select_strategy
    ]
    meta = caches.vision_meta(caches.manifest.model_folder(config.model.path), inputs, model)
    assert caches.open_store(before.parent, "vision", meta).folder != before


@pytest.fixture
def run(tiny_model, tmp_path):
    def build(*overrides):
        records = write_tiny_records(tmp_path / "records", 6)
        settings = [f"model.path={tiny_model}", f"data.path={records}", f"train.cache_dir={tmp_path / 'cache'}"]
        config = load_config(None, [*settings, "train.cache_vision_features=true", *overrides])
        inputs = read_inputs(config)
        return config, inputs, build_model(config, inputs)

    return build


def test_cached_features_and_states_are_those_of_the_model(run):
    config, inputs, model = run()
    stores = caches.prepare(config, inputs, model)
    dataset = caches_dataset(config, inputs)
    paths = [dataset[i].image_paths[0] for i in (4, 0, 4)]
    pixels = torch.cat([dataset[i].pixels[0]["pixel_values"] for i in (4, 0, 4)])
    with torch.no_grad():
        live = model.adapter.vision_features(pixels)
    torch.testing.assert_close(stores.features.lookup(paths), live, rtol=1e-5, atol=1e-5)
    assert stores.features.blank().shape == (1, *live.shape[1:])
    roots = [dataset[i].hallucinated_roots[0] for i in (5, 2)]
    expected = text_states(model, roots, encoder=inputs.encoder)
    torch.testing.assert_close(stores.texts.lookup(roots), expected, rtol=1e-5, atol=1e-5)


def caches_dataset(config, inputs):
    from hacl.training.run import build_dataset

    return build_dataset(config, inputs, inputs.records, pixels=True)


def test_features_of_a_tower_that_trains_are_refused(run):
    config, inputs, model = run("model.preset=stage1-vision", "train.cache_vision_features=false")
    config.train.cache_vision_features = True  # which a configuration of such rates refuses to set
    with pytest.raises(ConfigError, match="learning_rate.vision"):
        caches.prepare(config, inputs, model)


def test_a_cache_of_images_is_refused_where_there_is_none(tiny_llava, tmp_path):
    records = write_tiny_records(tmp_path / "records", 0, text_only=4)
    how = ["model.preset=stage2", f"model.path={tiny_llava}", f"data.path={records}", "data.template=chat"]
    config = load_config(None, [*how, "train.cache_vision_features=true", f"train.cache_dir={tmp_path / 'cache'}"])
    inputs = read_inputs(config)
    with pytest.raises(ConfigError, match="no record has an image"):
        caches.prepare(config, inputs, build_model(config, inputs))


def test_text_states_are_not_cached_when_lora_trains_the_decoder(run):
    config, inputs, model = run("model.lora.rank=2", "model.learning_rate.llm=1e-4")
    assert caches.prepare(config, inputs, model).texts is None


def test_a_changed_image_is_computed_again(run, tmp_path):
    config, inputs, model = run()
    before = caches.prepare(config, inputs, model).features.lookup(["images/0.png"])
    (tmp_path / "records/images/0.png").write_bytes((tmp_path / "records/images/3.png").read_bytes() + b"\0")
    stores = caches.prepare(config, inputs, model)
    assert not torch.equal(stores.features.lookup(["images/0.png"]), before)
    torch.testing.assert_close(
        stores.features.lookup(["images/0.png"]), stores.features.lookup(["images/3.png"]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("off", ["train.cache_text_states=false", "train.cache_vision_features=false"])
def test_a_request_to_stop_ends_caching_after_a_shard(run, monkeypatch, tmp_path, off):
    """Where signals are only noted, as in each of several ranks."""
    config, inputs, model = run(f"train.output_dir={tmp_path / 'out'}", off)
    stop = StopRequest()
    stop.received = "SIGTERM"
    with pytest.raises(Stopped, match="SIGTERM after step 0"):
        caches.prepare(config, inputs, model, stop)
    caches.prepare(config, inputs, model, StopRequest())
    seen = []
    monkeypatch.setattr("hacl.training.run.caches.prepare", lambda *given: seen.append(given) or caches.Stores())
    later = StopRequest()
    build_trainer(config, later)
    assert seen[0][3] is later, "the request of a run reaches its caches"

    def leave(config, stop):
        raise Stopped(type(stop).__name__, 0, saved=False)

    monkeypatch.setattr("hacl.training.run.build_trainer", leave)
    with pytest.raises(Stopped, match="StopRequest"):
        train(config)
