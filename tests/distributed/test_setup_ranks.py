"""Set-up on two ranks: one cache though ranks opened it at different times, one verdict on images, one end for all."""

from pathlib import Path

import pytest
import torch

from hacl.data.records import parse_record
from hacl.training import caches, checks, runtime
from hacl.training.caches import RowStore
from hacl.training.stopping import Stopped, StopRequest
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.slow
IMAGES = 12
VERDICTS = (  # bad images, those that cannot be read for a state of the machine, data.max_bad_fraction
    ((5, 8), (), 0.0),
    ((4, 6, 8), (), 0.25),
    ((4, 6, 8), (), 0.2),
    ((4, 8), (9,), 0.25),
    ((3, 4, 5, 6), (8, 9), 0.25),
    ((), (7, 10), 0.0),
)


def rows_of(keys):
    return torch.tensor([[float(key), 2.0 * float(key)] for key in keys])


def heard(action):
    """What a rank hears: the text of what it returned or raised."""
    try:
        return repr(action())
    except (ValueError, OSError, RuntimeError, Stopped) as error:
        return f"{type(error).__name__}: {error}"


def opened_late(rank, folder):
    """Rank 1 opens a store after a shard was added to it that rank 0 does not see."""
    if rank == 1:
        runtime.all_ranks(None)
        folder.mkdir(exist_ok=True)
        RowStore(folder, {})._write_shard(["1", "4"], rows_of(["1", "4"]))
    store = RowStore(folder, {})
    if rank == 0:
        runtime.all_ranks(None)
    asked = []

    def compute(keys):
        asked.extend(keys)
        return rows_of(keys)

    keys = ["1", "2", "3", "4", "5", "6"]
    said = heard(lambda: store.extend(keys, compute, batch=1))
    return said, asked, all(key in store and torch.equal(store.rows([key]), rows_of([key])) for key in keys)


def failing(rank, folder):
    """Rank 1 cannot compute a row of its second shard."""

    def compute(keys):
        if "4" in keys:
            raise RuntimeError("out of memory")
        return rows_of(keys)

    return heard(lambda: RowStore(folder, {}).extend([*"123456789"], compute, batch=1))


def other_keys(rank, folder):
    keys = ["1", f"{rank + 2}"]
    return heard(lambda: RowStore(folder, {}).extend(keys, rows_of, batch=1))


def asked_to_stop(rank, folder):
    """Rank 1 gets a signal in its second shard."""
    stop = StopRequest()

    def compute(keys):
        if "4" in keys:
            stop.received = "SIGTERM"
        return rows_of(keys)

    return heard(lambda: RowStore(folder, {}).extend([*"123456789"], compute, batch=1, stop=stop))


def verdicts():
    """What is said of a set of images in each case."""
    case = {}

    def read(path):
        number = int(Path(path).stem)
        if number in case["broken"]:
            raise PermissionError(f"{number}.png: no permission")
        if number in case["bad"]:
            raise (ValueError if number % 2 else FileNotFoundError)(f"{number}.png is bad")

    checks.check_header = checks.load_image = read
    checks.resolve_image = lambda root, image: image
    said = []
    checks.say = said.append
    for number in range(IMAGES):
        record = {"id": f"r{number}", "image": f"{number}.png", "captions": ["a"]}
        case.setdefault("records", []).append(parse_record(record, where="x"))
    for bad, broken, allowed in VERDICTS:
        case.update(bad=bad, broken=broken)
        said.append(heard(lambda allowed=allowed: checks.check_images(case["records"], None, max_bad_fraction=allowed)))
    return said


def all_of_it(rank, folder):
    caches.SHARD_BYTES = 8
    cached = [act(rank, Path(folder) / act.__name__) for act in (opened_late, failing, other_keys, asked_to_stop)]
    return [*cached, verdicts()]


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """What each of two ranks heard in every case: one launch."""
    folder = tmp_path_factory.mktemp("setup")
    return folder, run_ranks(all_of_it, 2, str(folder))


def test_ranks_that_opened_a_cache_at_different_times_share_what_any_of_them_lacks(by_rank):
    (one, mine, whole), (other, yours, both) = (heard_of[0] for heard_of in by_rank[1])
    assert (one, other, whole, both) == ("None", "None", True, True)
    assert sorted([*mine, *yours]) == [*"123456"], "each row was computed by one rank"


def test_a_rank_that_cannot_compute_ends_all_and_what_was_done_is_kept(by_rank):
    folder, (first, second) = by_rank
    assert first[1].startswith("ValueError: rank 1 could not compute") and "RuntimeError: out of memory" in first[1]
    assert second[1] == "RuntimeError: out of memory"
    kept = RowStore(folder / "failing", {})
    assert [key in kept for key in "123456789"] == [True, True, True, False, *[False] * 5]


def test_a_key_that_a_rank_still_lacks_is_an_error_on_all(by_rank):
    for said in (heard_of[2] for heard_of in by_rank[1]):
        assert "ValueError" in said and "lacks '2'" in said and "rank 0" in said


def test_a_signal_to_one_rank_ends_the_caching_of_all_and_what_was_done_is_kept(by_rank):
    folder, heard_by = by_rank
    assert [said[3] for said in heard_by] == ["Stopped: stopped by SIGTERM after step 0"] * 2
    kept = RowStore(folder / "asked_to_stop", {})
    assert [key in kept for key in "123456789"] == [*[True] * 4, *[False] * 5]


def test_the_verdict_on_images_is_that_of_one_process_on_every_rank(by_rank, monkeypatch):
    for name in ("check_header", "load_image", "resolve_image", "say"):
        monkeypatch.setattr(checks, name, None)  # put back after the test
    expected = verdicts()
    assert "record 'r5': 5.png is bad" in expected[0] and "3 of 12 image(s)" in expected[1]
    assert "more than data.max_bad_fraction=0.2 of 12" in expected[3] and "9.png: no permission" in expected[4]
    assert [said[4] for said in by_rank[1]] == [expected, expected]
