"""Promises about a run folder: one run at a time, whatever ended the one before, and one folder for all ranks."""

import errno
import multiprocessing
import os
import re
import signal
import threading

import pytest
import torch

from hacl.training import run_folder, runtime, storage


def hold(folder, ready, worker):
    """A process that holds the folder, with a worker of its own that outlives it."""
    with run_folder.held(folder):
        child = os.fork()
        if child == 0:
            signal.pause()
        worker.value = child
        ready.set()
        signal.pause()


def test_a_second_start_is_refused_until_the_first_process_is_gone_even_by_kill_9(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, worker = context.Event(), context.Value("i", 0)
    process = context.Process(target=hold, args=(tmp_path, ready, worker))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(run_folder.UsedFolderError, match=f"process {process.pid} on .* trains in this run folder"):
            with run_folder.held(tmp_path):
                pass
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        with run_folder.held(tmp_path):
            pass
        with run_folder.held(tmp_path):
            pass
    finally:
        if worker.value:
            os.kill(worker.value, signal.SIGKILL)
        process.kill()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder.fcntl, "lockf", no_locks)
    with run_folder.held(tmp_path):
        pass
    assert "cannot be locked" in capsys.readouterr().err


@pytest.mark.parametrize("shared", [True, False])
def test_a_rank_on_another_disk_is_named_on_every_rank_before_training(tmp_path, monkeypatch, shared):
    """Two ranks as threads, which exchange what collectives would."""
    told, mine, barrier = {}, threading.local(), threading.Barrier(2)

    def exchange(value):
        told[mine.rank] = value
        barrier.wait()
        values = [told[0], told[1]]
        barrier.wait()
        return values

    def on_first_rank(action, *, otherwise):
        return exchange(action() if mine.rank == 0 else None)[0]

    for name, value in {"world_size": lambda: 2, "rank": lambda: mine.rank}.items():
        monkeypatch.setattr(runtime, name, value)
    monkeypatch.setattr(runtime, "all_ranks", exchange)
    monkeypatch.setattr(runtime, "on_first_rank", on_first_rank)
    monkeypatch.setattr(run_folder, "SEEN_WITHIN", 0.5)
    errors = {}

    def rank(number):
        mine.rank = number
        folder = tmp_path / ("disk" if shared else f"disk-{number}")
        folder.mkdir(exist_ok=True)
        try:
            run_folder.check_shared(folder)
        except storage.StorageError as error:
            errors[number] = str(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if shared:
        assert not errors
    else:
        assert set(errors) == {0, 1} and all("rank 1 on" in text and "rank 0 on" in text for text in errors.values())
    assert not [path for path in tmp_path.rglob(".seen-*")]


@pytest.mark.parametrize("error", [KeyError("files"), RecursionError(), OSError(errno.EIO, "Input/output error")])
def test_an_error_of_the_first_rank_alone_ends_the_wait_of_the_others(monkeypatch, error):
    sent = []

    def fail():
        raise error

    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda answer, src: sent.append(list(answer)))
    monkeypatch.setattr(runtime, "rank", lambda: 0)
    with pytest.raises(type(error)):
        runtime.on_first_rank(fail, otherwise=storage.StorageError)

    def receive(answer, src):
        answer[:] = sent[0]

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", receive)
    monkeypatch.setattr(runtime, "rank", lambda: 1)
    with pytest.raises(storage.StorageError, match=re.escape(str(error) or type(error).__name__)):
        runtime.on_first_rank(fail, otherwise=storage.StorageError)
