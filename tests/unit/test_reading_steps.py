"""Promises where a step or a validation takes its batches, of modes after an early end, and of sums carried on."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hacl.config import Config
from hacl.training import running_sums
from hacl.training.callbacks import SampleCaptions
from hacl.training.diagnostics_callback import StateDiagnostics
from hacl.training.metrics import ReportMeter, Throughput
from hacl.training.stopping import Stopped
from hacl.training.trainer import DataError, HaclTrainer

ONE_RANK = SimpleNamespace(world_size=1, device=torch.device("cpu"))


class Broken:
    """Some batches, then a damaged one."""

    def __init__(self, batches, error=None):
        self.batches = iter(batches)
        self.error = OSError("7.png: truncated") if error is None else error

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self.batches)
        if batch is None:
            raise self.error
        return batch


def test_a_batch_that_cannot_be_read_is_a_data_error_that_names_the_file():
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.args, trainer.config = ONE_RANK, Config()
    batch = {"sequence_kind": torch.tensor([0, 1]), "label_sequence": torch.tensor([0, 0, 0, 1])}
    data = Broken([batch, batch, None])
    batches, labels = trainer.get_batch_samples(data, 2, torch.device("cpu"))
    assert len(batches) == 2 and labels == 6, "labels of hallucinated sequences do not count"
    with pytest.raises(DataError, match="7.png: truncated"):
        trainer.get_batch_samples(data, 2, torch.device("cpu"))


@pytest.mark.parametrize(
    "error", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), MemoryError(), KeyError("7.png")]
)
def test_any_error_of_reading_is_a_data_error_that_says_its_kind(error, caplog):
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.args, trainer.config = ONE_RANK, Config()
    with pytest.raises(DataError) as failed:
        trainer.get_batch_samples(Broken([None], error), 1, torch.device("cpu"))
    assert type(error).__name__ in str(failed.value) and str(error) in str(failed.value)
    assert caplog.records[0].exc_info[1] is error, "and the log has its traceback"


def test_a_request_to_stop_is_no_failure_of_reading():
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.args, trainer.config = ONE_RANK, Config()
    with pytest.raises(Stopped):
        trainer.get_batch_samples(Broken([None], Stopped("SIGTERM", 0, saved=False)), 1, torch.device("cpu"))


@pytest.mark.parametrize("error", [DataError("another rank could not read its data"), Stopped("x", 1, saved=False)])
def test_a_validation_that_ends_early_leaves_meters_and_modes_as_they_were(error):
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.config, trainer.model = Config(), nn.Sequential(nn.Linear(1, 1).train(), nn.Dropout().eval())
    trainer.args = ONE_RANK
    trainer.model_wrapped = trainer.model
    trainer._meter, trainer._throughput = meters = ReportMeter(), Throughput()
    trainer.get_eval_dataloader = lambda dataset: iter([{}])
    trainer.beat, seen = lambda phase: None, []

    def heard(failure, device):
        seen.append((trainer.model[0].training, trainer._meter is meters[0]))
        raise error

    trainer._heard = heard
    with pytest.raises(type(error)):
        trainer.evaluate()
    assert seen == [(False, False)]
    assert [part.training for part in trainer.model] == [True, False]
    assert (trainer._meter, trainer._throughput) == meters


def test_a_validation_batch_that_cannot_be_read_is_a_data_error_that_names_the_file():
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.args, trainer.config = ONE_RANK, Config()
    trainer.state, trainer.get_eval_dataloader = SimpleNamespace(global_step=4), lambda _: Broken([{}, None])
    read = trainer._validation_batches(None)
    assert next(read) == {}
    with pytest.raises(DataError, match="7.png: truncated"):
        next(read)


@pytest.mark.parametrize("kind", [SampleCaptions, StateDiagnostics])
def test_captions_and_diagnostics_that_end_early_leave_every_module_in_its_mode(kind):
    watcher, seen = kind.__new__(kind), []
    watcher.model = nn.Sequential(nn.Linear(1, 1).train(), nn.Dropout().eval())

    def stop(*_):
        seen.append((watcher.model[0].training, torch.is_grad_enabled()))
        raise Stopped("SIGTERM", 1, saved=False)

    watcher._generate = watcher.poll = stop
    watcher.batches = [{}]
    with pytest.raises(Stopped):
        (watcher.generate if kind is SampleCaptions else watcher.measure)(
            SimpleNamespace(bf16=False, deepspeed=None, device="cpu")
        )
    assert seen == [(False, False)] and [part.training for part in watcher.model] == [True, False]


def test_a_checkpoint_of_an_earlier_version_has_no_sums(tmp_path):
    sums = {"loss": 0.1 + 0.2, "terms": {"lm": [1 / 3, 7.0]}}
    running_sums.write(tmp_path, 1, sums)
    assert running_sums.read(tmp_path, 1) == sums and running_sums.read(tmp_path, 0) == {}


def test_sums_of_reports_come_back_to_the_bit_from_json():
    whole, begun = ReportMeter(), ReportMeter()
    reports = [{"lm": (torch.tensor(0.1 * n), torch.tensor(n))} for n in (1, 3, 7, 9)]
    for report in reports:
        whole.add(report)
    for report in reports[:2]:
        begun.add(report)
    resumed = ReportMeter()
    resumed.load(json.loads(json.dumps(begun.state())), torch.device("cpu"))
    for report in reports[2:]:
        resumed.add(report)
    assert resumed.reduce() == whole.reduce()
