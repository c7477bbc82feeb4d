"""Caching text states on two ranks: disjoint shares, together the states of one process, the same files every time."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hacl.config import load_config
from hacl.data.text_cache import TextCache, text_key
from hacl.training import cache_text
from tests.distributed.ranks import run_ranks
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(tiny_llava, tmp_path_factory):
    records = write_tiny_records(tmp_path_factory.mktemp("records"), 24)
    return [f"model.path={tiny_llava}", f"data.path={records}"]


def cached(rank, settings, folder):
    report = cache_text.cache_texts(load_config(None, settings), Path(folder), batch=4)
    return dataclasses.astuple(report)


def cached_twice(rank, settings, folders):
    return [cached(rank, settings, folder) for folder in folders]


def over_again(rank, settings, folder):
    """Texts that are computed where all are there, and why another layer is refused."""
    computed = cached(rank, settings, folder)[2]
    try:
        cached(rank, [*settings, "objective.layer=1"], folder)
    except ValueError as error:
        return computed, str(error)
    return computed, ""


def states(folder):
    """Key of a text -> its state, over all shards; a text in two shards is an error."""
    found = {}
    for shard in sorted(folder.glob("states-*.safetensors")):
        tensors = load_file(shard)
        for key, row in zip(tensors["keys"].tolist(), tensors["rows"], strict=True):
            assert tuple(key) not in found
            found[tuple(key)] = row
    return found


@pytest.fixture(scope="module")
def by_two_ranks(settings, tmp_path_factory):
    """Two folders of the same texts, and what each of two ranks reported of them: one launch."""
    folders = [tmp_path_factory.mktemp("caches") / name for name in ("two", "again")]
    return folders, run_ranks(cached_twice, 2, settings, list(map(str, folders)))


def test_two_ranks_compute_disjoint_shares_that_make_the_cache_of_one_process(settings, by_two_ranks, tmp_path):
    (two, again), reports = by_two_ranks
    one = tmp_path / "one"
    whole = cached(0, settings, one)
    assert all(tuple(report) == whole for reports_of_rank in reports for report in reports_of_rank) and whole[2] > 10
    expected, found = states(one), states(two)
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        torch.testing.assert_close(found[key], row, rtol=1e-5, atol=1e-6)
    assert len(list(two.glob("states-*.safetensors"))) == 2
    files = sorted(path.name for path in two.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((two / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_one_process_goes_on_with_what_two_ranks_left_and_a_stale_folder_ends_all_ranks(
    settings, by_two_ranks, tmp_path
):
    folder = shutil.copytree(by_two_ranks[0][0], tmp_path / "texts")
    lost = sorted(folder.glob("states-*.safetensors"))[0]
    rows = len(load_file(lost)["keys"])
    lost.unlink()
    texts, kept, computed, _ = cached(0, settings, folder)
    assert (computed, kept) == (rows, texts - rows)
    for computed, refused in run_ranks(over_again, 2, settings, str(folder)):
        assert computed == 0 and "another layer" in refused
    cache = TextCache(folder, cache_meta(folder))
    assert cache.holds([[1, 9, 2]]) == [text_key([1, 9, 2]) in states(folder)] and len(cache) == texts


def cache_meta(folder):
    return json.loads((folder / "meta.json").read_text())


def test_the_command_runs_on_two_processes_of_torchrun(settings, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["data_prep/cache_text.py", "--output", str(tmp_path / "texts")]
    for setting in settings:
        words += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("different texts") == 1 and len(states(tmp_path / "texts")) > 10
