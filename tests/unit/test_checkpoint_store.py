"""Promises of saving: complete checkpoints or none, killed, full or read-only; pruning; what a resume passes over."""

import errno
import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hacl.config import load_config
from hacl.training import checkpoint_store, manifest, run, storage
from tests.tiny import write_tiny_records


class Killed(BaseException):
    """The process is gone (so to speak): from here on nothing it does reaches the disk."""


class Kill:
    """Counts every write below a folder and dies at number `at`, before it or, for a file of tensors, half-way."""

    active = None

    def __init__(self, monkeypatch):
        self.at, self.count, self.folder = None, 0, None
        Kill.active = self
        for module, name in ((torch, "save"), (safetensors.torch, "save_file"), (os, "fsync")):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name), name))

    def arm(self, folder, at):
        self.folder, self.at, self.count = str(folder), at, 0

    def step(self):
        if self.folder is None:
            return
        self.count += 1
        if self.at is not None and self.count > self.at:
            raise Killed

    def counted(self, write, name):
        def call(*arguments, **options):
            if name != "fsync" and self.folder is not None and self.count == self.at:
                folder, self.folder = self.folder, None
                write(*arguments, **options)
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
                self.folder = folder
            self.step()
            return write(*arguments, **options)

        return call


def watch(event, arguments):
    """An audit hook, which cannot be removed: idle without an armed Kill."""
    kill = Kill.active
    if kill is None or kill.folder is None:
        return
    writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or (
        event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    )
    if writes and str(arguments[0]).startswith(kill.folder):
        kill.step()


@pytest.fixture(scope="module", autouse=True)
def audit():
    sys.addaudithook(watch)
    yield
    Kill.active = None


@pytest.fixture(scope="module")
def trainer(tiny_llava, tmp_path_factory):
    """Trained for two steps, with both checkpoints."""
    folder = tmp_path_factory.mktemp("store")
    records = write_tiny_records(folder / "records", 8)
    how = ["model.preset=stage1-llm", "train.max_steps=2", "train.save_steps=1", "train.save_total_limit=2"]
    how += ["objective.queue_size=4", "train.per_device_batch_size=4", "train.scheduler=constant", "train.warmup=0"]
    how += [f"model.path={tiny_llava}", f"data.path={records}", f"train.output_dir={folder / 'run'}"]
    config = load_config(None, how)
    trainer = run.build_trainer(config)
    trainer.train()
    trainer.processor = None  # a dozen files that say nothing new
    return trainer


@pytest.fixture
def folder(trainer, tmp_path):
    """A copy of the run folder, in which the trainer now writes."""
    shutil.copytree(Path(trainer.config.train.output_dir), tmp_path / "run")
    trainer.args.output_dir = str(tmp_path / "run")
    return tmp_path / "run"


def save(trainer, step):
    trainer.state.global_step, trainer._saved_step = step, -1
    trainer.save_now()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name)


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "a step saved before"])
def test_a_kill_at_any_write_leaves_a_complete_checkpoint_and_the_next_start_tidies_up(
    trainer, folder, monkeypatch, step
):
    kill, original = Kill(monkeypatch), folder.parent / "original"
    shutil.copytree(folder, original)
    kill.arm(folder, None)
    save(trainer, step)
    total, kept = kill.count, []
    assert total > 30, "many writes, or the test shows little"
    for number in range(total):
        kill.folder = None
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        kill.arm(folder, number)
        with pytest.raises(Killed):
            save(trainer, step)
        kill.folder = None
        checkpoint_store.clear_leftovers(folder)
        newest = manifest.newest_checkpoint(folder)
        kept.append(newest.name)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert set(kept) == {"checkpoint-2", f"checkpoint-{step}"} and kept == sorted(kept)
    save(trainer, step)
    assert names(folder) == (["checkpoint-2", "checkpoint-3"] if step == 3 else ["checkpoint-1", "checkpoint-2"])


def test_the_manifest_is_the_last_file_of_a_save(trainer, folder):
    save(trainer, 3)
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoint-3").iterdir() if path.is_file()}
    assert max(written, key=written.get) == "manifest.json" and "trainer_state.json" in written


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("module, name", [(torch, "save"), (safetensors.torch, "save_file"), (os, "replace")])
def test_a_full_disk_is_an_error_with_numbers_and_keeps_what_is_there(trainer, folder, monkeypatch, module, name):
    monkeypatch.setattr(module, name, full)
    with pytest.raises(storage.StorageError) as error:
        save(trainer, 3)
    message = str(error.value)
    assert "cannot write checkpoint-3" in message and str(folder) in message and "No space left" in message
    assert "needed" in message and "free" in message and "checkpoint-2 is the last complete checkpoint" in message
    assert names(folder) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("first", ["config.json", "trained.safetensors", "optimizer.pt"])
def test_a_limit_of_the_file_size_stops_real_writers_in_the_same_way(trainer, folder, first):
    limit = (folder / "checkpoint-2" / first).stat().st_size - 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(storage.StorageError, match="cannot write checkpoint-3"):
            save(trainer, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(folder) == ["checkpoint-1", "checkpoint-2"]
    assert manifest.newest_checkpoint(folder).name == "checkpoint-2"


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_slow(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(storage.StorageError, match="make it writable or name another train.output_dir"):
        storage.check_writable(tmp_path / "file/run")

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(storage.StorageError, match="Read-only file system"):
        storage.check_writable(tmp_path / "run")


def test_a_start_without_space_for_one_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(storage.StorageError, match=r"2\.00 GiB needed, 0\.0 MiB free"):
        storage.check_space(tmp_path / "not yet there", 2**31)
    storage.check_space(tmp_path, 10)


def complete(run, *steps):
    for step in steps:
        path = checkpoint_store.checkpoint_folder(run, step)
        path.mkdir(parents=True)
        (path / "weights").write_bytes(b"w" * step)
        manifest.write_manifest(path, load_config(None), base="", data="", step=step, ranks=1)


def test_pruning_keeps_the_last_complete_ones_and_the_best_and_touches_no_other(tmp_path):
    complete(tmp_path, 1, 2, 3, 10)
    (tmp_path / "checkpoint-4").mkdir()  # no manifest
    (tmp_path / "checkpoint-old").mkdir()
    newest = tmp_path / "checkpoint-10"
    checkpoint_store.prune(tmp_path, None, newest=newest)
    assert len(names(tmp_path)) == 6
    checkpoint_store.prune(tmp_path, 3, newest=newest, best=tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-10", "checkpoint-3", "checkpoint-4", "checkpoint-old"]
    checkpoint_store.prune(tmp_path, 1, newest=tmp_path / "checkpoint-3")
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4", "checkpoint-old"], "never the one just written"


def test_a_checkpoint_without_the_random_state_of_a_rank_is_not_published(trainer, folder, monkeypatch):
    monkeypatch.setattr(trainer, "_save_rng_state", lambda output_dir: None)
    with pytest.raises(storage.StorageError, match=r"rng_state\.pth did not arrive.*shared file system"):
        save(trainer, 3)
    assert names(folder) == ["checkpoint-1", "checkpoint-2"]
    for rank in (0, 2):
        (folder / f"rng_state_{rank}.pth").touch()
    with pytest.raises(storage.StorageError, match=r"rng_state_1\.pth did not"):
        checkpoint_store.check_ranks(folder, 3)


def test_a_file_system_that_flushes_no_folders_is_one_to_save_on(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def refused(descriptor):
        if os.fstat(descriptor).st_mode & 0o170000 == 0o040000 or refused.files:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    refused.files = False
    monkeypatch.setattr(os, "fsync", refused)
    checkpoint_store.flush(tmp_path)
    refused.files = True
    with pytest.raises(OSError, match="Invalid argument"):
        checkpoint_store.flush(tmp_path)


def test_a_failed_removal_is_reported_and_harms_nothing(tmp_path, monkeypatch, caplog):
    complete(tmp_path, 1, 2)

    def stuck(path, *arguments, **options):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", stuck)
    checkpoint_store.prune(tmp_path, 1, newest=tmp_path / "checkpoint-2")
    assert "remove it by hand" in caplog.text and manifest.newest_checkpoint(tmp_path).name == "checkpoint-2"
    monkeypatch.undo()
    complete(tmp_path / "b", 1, 2)
    monkeypatch.setattr(os, "replace", stuck)
    checkpoint_store.prune(tmp_path / "b", 1, newest=tmp_path / "b/checkpoint-2")
    assert names(tmp_path / "b") == ["checkpoint-1", "checkpoint-2"]


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"form'), "damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "format 'list'"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "damaged"),
        (lambda folder: rewrite(folder, files=None), "damaged: files"),
        (lambda folder: rewrite(folder, step="3"), "damaged: step"),
        (lambda folder: rewrite(folder, base="llava"), "damaged: base"),
        (lambda folder: rewrite(folder, files={"weights": 3}), "damaged: files/weights"),
        (lambda folder: rewrite(folder, files={"weights": {"size": 3, "sha256": 4}}), "damaged: files/weights"),
        (lambda folder: rewrite(folder, files={"weights": {}}), "damaged: files/weights"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_bytes(b"ww"), "another size"),
        (lambda folder: (folder / "weights").write_bytes(b"www!"[:3][::-1][:2] + b"!"), "content of weights"),
    ],
)
def test_what_does_not_verify_is_passed_over_and_named(tmp_path, capsys, damage, reason):
    complete(tmp_path, 2, 3)
    damage(tmp_path / "checkpoint-3")
    assert manifest.newest_checkpoint(tmp_path).name == "checkpoint-2"
    said = capsys.readouterr().err
    assert "passing over" in said and "checkpoint-3" in said and reason in said
    assert json.loads((tmp_path / "checkpoint-2/manifest.json").read_text())["step"] == 2


def test_a_manifest_that_the_disk_does_not_give_back_is_passed_over(tmp_path, monkeypatch, capsys):
    complete(tmp_path, 2, 3)
    original = Path.read_text

    def broken(self, *arguments, **options):
        if self == tmp_path / "checkpoint-3/manifest.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", broken)
    assert manifest.newest_checkpoint(tmp_path).name == "checkpoint-2"
    assert "Input/output error" in capsys.readouterr().err
