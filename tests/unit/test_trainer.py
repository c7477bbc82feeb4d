"""Promises of batch planning, parameter groups, loss normalisation and metrics."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hacl.config import Config, LearningRates, ObjectiveConfig
from hacl.data.collate import HALLUCINATED_GENERATION
from hacl.data.records import parse_record
from hacl.losses.gather import Gather
from hacl.training import accumulation, build, manifest, runtime
from hacl.training.callbacks import keep_until
from hacl.training.groups import parameter_groups
from hacl.training.metrics import ReportMeter, Throughput, ratios
from hacl.training.objective import HaclModel, compose
from hacl.training.runtime import deepspeed_config
from hacl.training.sampler import GlobalBatchSampler, plan_epoch, plan_evaluation
from hacl.training.trainer import HaclTrainer
from hacl.training.work import Work

ROOT = Path(__file__).resolve().parents[2]


def test_an_epoch_visits_every_sample_once_and_drops_only_the_incomplete_batch():
    batches = plan_epoch(23, 4, seed=0, epoch=0)
    flat = [i for batch in batches for i in batch]
    assert len(batches) == 5 and len(set(flat)) == 20
    assert plan_epoch(23, 4, seed=0, epoch=0) == batches != plan_epoch(23, 4, seed=0, epoch=1)


def test_ranks_share_each_global_batch_without_overlap():
    plan = lambda epoch: plan_epoch(16, 8, seed=1, epoch=epoch)  # noqa: E731
    parts = [list(GlobalBatchSampler(plan, rank=rank, ranks=2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in plan(0)]
    assert all(len(a) == len(b) == 4 for a, b in zip(*parts, strict=True))


def test_grouping_by_length_puts_similar_lengths_together():
    lengths = list(range(64))
    spread = {
        how: sum(max(b) - min(b) for b in plan_epoch(64, 4, seed=0, epoch=0, grouping=how, lengths=lengths))
        for how in ("none", "length")
    }
    assert spread["length"] == 16 * 3 < spread["none"]


def test_grouping_by_modality_separates_text_only_samples_except_for_the_left_over():
    text_only = [i % 3 == 0 for i in range(60)]
    batches = plan_epoch(60, 4, seed=0, epoch=0, grouping="modality", lengths=[10] * 60, is_text_only=text_only)
    mixed = [b for b in batches if len({text_only[i] for i in b}) == 2]
    assert len(batches) == 15 and len(mixed) <= 1
    assert sorted(i for b in batches for i in b) == list(range(60))


@pytest.mark.parametrize("count, batch, ranks", [(1, 4, 1), (5, 4, 4), (17, 8, 2), (64, 8, 3)])
def test_validation_visits_every_sample_exactly_once_on_all_ranks(count, batch, ranks):
    plan = plan_evaluation(count, batch, ranks)
    assert [i for part in plan for i in part] == list(range(count))
    assert min(len(part) for part in plan) >= ranks


def test_fewer_validation_samples_than_ranks_is_an_error():
    with pytest.raises(ValueError, match="3 validation samples"):
        plan_evaluation(3, 8, 4)


class TinyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower, self.projector, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.heads = nn.Linear(4, 2)
        self.heads.temperature = nn.Parameter(torch.zeros(1))
        self.adapter = SimpleNamespace(
            groups=lambda: {"vision": [self.tower], "projector": [self.projector], "llm": [self.decoder]}
        )


def test_each_module_has_its_learning_rate_and_vectors_are_not_decayed():
    model = TinyModel()
    model.tower.requires_grad_(False)
    groups = {g["name"]: g for g in parameter_groups(model, LearningRates(0.0, 1e-3, 2e-5, 5e-4), 0.1)}
    assert set(groups) == {"projector", "projector/no_decay", "llm/no_decay", "heads", "heads/no_decay"}
    assert groups["projector"]["lr"] == 1e-3 and groups["llm/no_decay"]["lr"] == 2e-5
    assert groups["projector"]["weight_decay"] == 0.1 and groups["heads/no_decay"]["weight_decay"] == 0.0
    assert any(p is model.heads.temperature for p in groups["heads/no_decay"]["params"])


def test_nothing_to_train_is_an_error():
    model = TinyModel().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        parameter_groups(model, LearningRates(), 0.0)


def loading_trainer(dataset, workers=0):
    """A trainer as far as its loader goes."""
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.config = Config()
    trainer.args = SimpleNamespace(
        world_size=1, process_index=0, dataloader_num_workers=workers, dataloader_pin_memory=False
    )
    trainer.train_dataset, trainer.data_collator = dataset, lambda samples: samples
    trainer.lengths = trainer.is_text_only = None
    return trainer


@pytest.mark.parametrize("setting, same", [("train", True), ("data", False)])
def test_the_order_of_samples_depends_on_the_data_seed_alone(setting, same):
    def order(seed):
        trainer = loading_trainer(list(range(64)))
        getattr(trainer.config, setting).seed = seed
        return list(trainer.get_train_dataloader())

    assert (order(0) == order(1)) == same


class Handlers:
    """Samples that say whether the worker that reads them ignores the signals of a scheduler."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGTERM, signal.SIGUSR1)]


def test_workers_leave_signals_to_the_process_that_trains():
    batch = next(iter(loading_trainer(Handlers(), workers=1).get_train_dataloader()))
    assert "True, True" in str(batch) and "False" not in str(batch)


def test_a_changed_conversation_image_id_or_type_is_other_data():
    raw = {
        "id": "a",
        "image": "a.png",
        "image_id": "1",
        "captions": ["a red square"],
        "hallucinated": [{"text": "a blue square", "type": "attribute"}],
        "conversations": [{"role": "user", "content": "<image> what is it ?"}, {"role": "assistant", "content": "red"}],
    }
    changes = [
        {},
        {"image_id": "2"},
        {"conversations": [raw["conversations"][0], {"role": "assistant", "content": "blue"}]},
        {"hallucinated": [{"text": "a blue square", "type": "object"}]},
    ]
    found = {manifest.data_fingerprint([parse_record({**raw, **change}, where="x:1")]) for change in changes}
    assert len(found) == len(changes)


def test_a_resumed_log_loses_later_lines_and_a_cut_one(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    keep_until(path, 0)
    assert path.read_text() == ""


def test_time_spent_validating_saving_and_sampling_is_no_training_time():
    meter = Throughput()
    meter.add({"work": Work(samples=6, tokens=10, slots=10).tensor()})
    with meter.paused():
        time.sleep(0.3)
    meter.started -= 1.0  # one more second of training
    assert meter.reduce()["samples_per_second"] > 6 / 1.2


@pytest.mark.parametrize("path", ["./absent", "/absent/model", "~/absent-model", "a/b/c", "tests/absent"])
def test_a_model_path_that_looks_like_a_folder_and_is_none_is_named(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match="model.path: no such folder"):
        build.check_model_path(path)
    build.check_model_path("owner/name")


def test_ranks_meet_before_their_group_ends_and_one_process_has_none(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    runtime.leave_group()
    assert calls == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    runtime.leave_group()
    assert calls == ["barrier", "destroy"]


def window_loss(micro_batches, ranks=1):
    """Loss of one optimizer step by HaclTrainer.compute_loss: sum over the window, mean over ranks."""
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.config = Config()
    trainer.args = SimpleNamespace(world_size=ranks)
    trainer._meter, trainer._throughput = ReportMeter(), SimpleNamespace(add=lambda batch: None)
    trainer.current_gradient_accumulation_steps = len(micro_batches[0])
    tokens = torch.tensor(sum(len(m["lm"]) for rank in micro_batches for m in rank))
    per_rank = []
    for rank in micro_batches:
        total = torch.zeros(())
        for micro in rank:
            outputs = SimpleNamespace(
                lm_sum=torch.tensor(micro["lm"]).sum(),
                lm_tokens=torch.tensor(len(micro["lm"])),
                contrastive=torch.tensor(micro["contrastive"]),
                margin=torch.zeros(()),
                report={},
            )
            total = total + trainer.compute_loss(lambda out=outputs: out, {}, num_items_in_batch=tokens)
        per_rank.append(total)
    return torch.stack(per_rank).mean()


def test_the_generation_loss_is_one_mean_over_all_tokens_of_window_and_ranks():
    first = {"lm": [1.0, 2.0, 3.0], "contrastive": 0.0}
    second = {"lm": [10.0], "contrastive": 0.0}
    expected = torch.tensor(16.0 / 4)
    torch.testing.assert_close(window_loss([[first, second]]), expected)
    torch.testing.assert_close(window_loss([[first], [second]], ranks=2), expected)


def test_the_contrastive_loss_is_a_mean_over_micro_batches_whatever_the_tokens():
    few = [{"lm": [0.0], "contrastive": 2.0}, {"lm": [0.0], "contrastive": 4.0}]
    many = [{"lm": [0.0] * 9, "contrastive": 2.0}, {"lm": [0.0] * 90, "contrastive": 4.0}]
    for window in (few, many):
        torch.testing.assert_close(window_loss([window]), torch.tensor(3.0))


@pytest.mark.parametrize("pairs", [(1, 1, 1), (3, 0, 4), (0, 0, 0)])
def test_the_shares_of_pairs_sum_to_one_also_where_batches_are_cast_to_bf16(pairs):
    """Trainer casts the floating-point tensors of a batch to the dtype of a DeepSpeed engine."""
    batches = [{"sequence_kind": torch.full((count,), HALLUCINATED_GENERATION)} for count in pairs]
    accumulation.add_pair_counts(batches, Gather(alone=True), torch.device("cpu"))
    cast = [{k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()} for batch in batches]
    shares = [float(accumulation.pair_share(batch)) for batch in cast]
    assert shares == pytest.approx([count / max(1, sum(pairs)) for count in pairs], rel=1e-12)


def test_the_loss_is_put_together_by_one_formula_for_tensors_and_numbers():
    objective = Config().objective
    objective.lm_weight, objective.contrastive_weight, objective.likelihood_margin_weight = 2.0, 3.0, 5.0
    assert compose(objective, 1.0, 10.0, 100.0) == 2.0 + 30.0 + 500.0
    assert float(compose(objective, *torch.tensor([1.0, 10.0, 100.0]))) == 532.0


def test_heads_are_the_same_wherever_they_are_built(tiny_llava):
    config = Config()
    config.model.path = str(tiny_llava)
    backbone = build.load_backbone(config.model)
    objective = ObjectiveConfig(head="mlp", projection_size=8, shared_head=True, learn_temperature=True)
    own = HaclModel(backbone, objective).heads
    given = build.build_heads(build.find_adapter(backbone), objective, seed=0, trainable=True)
    assert repr(own) == repr(given)
    for mine, theirs in zip(own.parameters(), given.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.requires_grad == theirs.requires_grad


def test_reports_are_reduced_by_sums_and_counts_and_then_forgotten():
    meter = ReportMeter()
    meter.add({"lm": (torch.tensor(6.0), torch.tensor(3)), "none": (torch.tensor(0.0), torch.tensor(0))})
    meter.add({"lm": (torch.tensor(2.0), torch.tensor(1))})
    assert ratios(meter.reduce()) == {"lm": 2.0}
    assert ratios(meter.reduce()) == {}


@pytest.mark.parametrize("stage", range(4))
def test_a_stage_number_becomes_a_deepspeed_configuration_without_optimizer(stage):
    config = Config()
    config.train.deepspeed = stage
    plan = deepspeed_config(config.train)
    assert plan["zero_optimization"]["stage"] == stage and "optimizer" not in plan


@pytest.mark.parametrize("path", sorted((ROOT / "configs/deepspeed").glob("*.json")), ids=lambda p: p.stem)
def test_the_deepspeed_examples_are_accepted(path):
    config = Config()
    config.train.deepspeed = str(path)
    assert deepspeed_config(config.train)["zero_optimization"]["stage"] in (2, 3)


def test_a_deepspeed_file_that_names_an_optimizer_is_refused(tmp_path):
    config = Config()
    config.train.deepspeed = str(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text('{"optimizer": {"type": "AdamW"}}')
    with pytest.raises(ValueError, match="remove 'optimizer'"):
        deepspeed_config(config.train)


def test_a_damaged_deepspeed_file_is_named(tmp_path):
    config = Config()
    config.train.deepspeed = str(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is not valid JSON"):
        deepspeed_config(config.train)


def test_a_fingerprint_sees_a_changed_weight_and_only_in_the_parts_asked_for(tmp_path):
    from safetensors.torch import save_file

    weights = {"vision_tower.a": torch.arange(10.0), "language_model.b": torch.arange(20.0)}
    save_file(weights, tmp_path / "model.safetensors")
    before = [manifest.fingerprint(tmp_path, parts) for parts in ((), ("vision_tower",), ("language_model",))]
    weights["language_model.b"][7] += 1e-3
    save_file(weights, tmp_path / "model.safetensors")
    after = [manifest.fingerprint(tmp_path, parts) for parts in ((), ("vision_tower",), ("language_model",))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]
