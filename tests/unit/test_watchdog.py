"""Promises of the watchdog: who is late is named with step, phase and records; a quiet group makes no noise."""

import io
import json
import sys
import threading
import time

import pytest

from hacl.training import watchdog
from hacl.training.stopping import Stopped, StopRequest, shield_worker
from hacl.training.watchdog import HungRankError, Watchdog, late_ranks


def word(count, **more):
    return {"count": count, "step": count, "phase": "forward and backward", "records": [], **more}


@pytest.mark.parametrize(
    "words, late",
    [
        ([word(4), word(3), word(4)], [1]),
        ([word(4), None, word(4)], [1]),
        ([word(4), word(4)], []),
        ([word(4, where="torch/distributed/c10d.py:1 all_reduce"), word(4, where="data/images.py:9 load")], [1]),
        ([word(4, where="nn/parallel/distributed.py:2 _sync"), word(4, where="data/images.py:9 load")], [1]),
        ([word(4, where="a/images.py:9 load"), word(4, where="b/images.py:9 load")], []),
    ],
)
def test_the_late_ranks_are_those_behind_or_else_those_that_wait_in_no_collective(words, late):
    assert late_ranks(words) == late


def two_ranks(seconds=30.0):
    store = watchdog._Local()
    pair = [Watchdog(seconds, rank=rank, ranks=2, store=store) for rank in range(2)]
    for one in pair:
        one.start()
    return pair


def test_a_lost_collective_is_told_with_the_step_phase_and_records_of_the_late_rank():
    first, second = two_ranks()
    for one in (first, second):
        one.beat("reading data", step=6)
        one.beat("forward and backward", step=7, records=[f"r{i}" for i in range(20)])
    first.beat("reading data", step=7)
    error = first.blame(RuntimeError("[gloo] Timed out waiting 6000ms for recv operation to complete"))
    assert isinstance(error, HungRankError)
    assert "waiting for rank 1" in str(error) and "rank 1: step 7, forward and backward, records r0, r1" in str(error)
    assert "r8" not in str(error), "a few records name a batch"
    assert first.blame(RuntimeError("shapes do not fit")) is None
    assert first.blame(RuntimeError("NCCL communicator was aborted on rank 0.")) is not None
    for said in ("(pid 7) is killed by signal: Aborted. ", "process 0.\nTraceback: connection reset by peer"):
        assert first.blame(RuntimeError(f"DataLoader worker {said}")) is None, "a loader's worker is no rank"
    for one in (first, second):
        one.stop()


def test_a_standstill_is_reported_once_with_stacks_before_the_collective_gives_up(monkeypatch):
    said, dumped = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda **options: dumped.append(options))
    first, second = two_ranks(seconds=0.5)
    second.stop()
    first.beat("validation", step=3)
    end = time.monotonic() + 60
    while not dumped and time.monotonic() < end:
        time.sleep(0.02)
    first.stop()
    assert len(dumped) == 1 and dumped[0]["all_threads"]
    assert "waiting for rank 1" in said.getvalue() and "test_watchdog.py" in said.getvalue()


def test_a_watchdog_that_was_not_started_notes_nothing():
    store = watchdog._Local()
    Watchdog(1.0, store=store).beat("save", step=1)
    assert not store.check([f"{watchdog.PREFIX}/0"])
    started = Watchdog(30.0, store=store)
    started.start()
    started.beat("save", step=2, records=["a"])
    started.beat("after saving", step=2)
    assert json.loads(store.get(f"{watchdog.PREFIX}/0"))["records"] == ["a"]
    started.stop()


def test_signals_are_noted_while_a_run_can_save_and_end_it_at_once_before(monkeypatch):
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Stopped, match="SIGTERM after step 0"), StopRequest(at_once=True):
        os.kill(os.getpid(), signal.SIGTERM)
    set_to = {}
    monkeypatch.setattr(signal, "signal", lambda number, what: set_to.update({number: what}))
    shield_worker(0)
    assert set_to == dict.fromkeys((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT), signal.SIG_IGN)


def test_a_beat_while_the_thread_looks_where_the_rank_is_is_not_taken_back(monkeypatch):
    dog = Watchdog(0.5, store=watchdog._Local())
    looked = threading.Event()

    def where(thread):
        if not looked.is_set():
            dog.beat("backward", step=7)
            dog._done.set()  # no second look
            looked.set()
        return "data/images.py:9 load"

    monkeypatch.setattr(watchdog, "_where", where)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda **options: None)
    dog.start()
    dog.beat("forward", step=7)
    assert looked.wait(60)
    dog.stop()
    (word,) = dog.everyone()
    assert (word["phase"], word["count"]) == ("backward", 2) and "where" not in word


def test_a_watchdog_that_was_stopped_watches_again_when_it_is_started_again(monkeypatch):
    reported = threading.Event()
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda **options: reported.set())
    dog = Watchdog(0.2, store=watchdog._Local())
    dog.start()
    dog.stop()
    reported.clear()
    dog.start()
    dog.beat("forward", step=1)
    assert reported.wait(60)
    dog.stop()


def test_ids_of_records_stay_short_and_on_one_line():
    word = {"count": 1, "step": 3, "phase": "forward", "records": ["a\nerror: no", "b" * 500]}
    told = watchdog._told(word)
    assert "\n" not in told and "a error: no" in told and len(told) < 200
