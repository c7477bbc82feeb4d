"""The promise of the Ray engine: the bytes of a local run, killed or not."""

import json
from functools import partial

import pytest

from hacl.data.records import Record, write_records
from hacl.hallucinate.annotate import annotate
from hacl.hallucinate.lexical import LexicalHallucinator
from hacl.hallucinate.ray_engine import ray_map


@pytest.fixture
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.ray_engine.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        next(ray_map(dict, dict, [], workers=1))


@pytest.mark.slow
def test_a_local_cluster_writes_the_bytes_of_a_local_run_and_goes_on_with_it(tmp_path, monkeypatch, cluster):
    monkeypatch.setattr("hacl.hallucinate.annotate.CHUNK", 5)
    monkeypatch.setattr("hacl.hallucinate.ray_engine.WINDOW", 2)
    source = tmp_path / "in.jsonl"
    write_records(source, [Record(f"r{n}", ("a.jpg",), f"i{n}", (f"A dog — 犬 — and {n} cats.",)) for n in range(37)])
    make = partial(annotate, source, num_hallucinated=2, settings={}, recipe=LexicalHallucinator)
    local = make(output=tmp_path / "local.jsonl")
    part = make(output=tmp_path / "ray.jsonl", limit=7)
    rest = make(output=tmp_path / "ray.jsonl", workers=2, mapped=ray_map)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert (part.records, rest.resumed, rest.records) == (7, 7, 30)
    assert part.types + rest.types == local.types and part.rejected + rest.rejected == local.rejected
    assert json.loads((tmp_path / "ray.jsonl.meta.json").read_text()) == {}
