"""Promises of the DPO baseline: the pairs of the training arms, rows that say what likelihood says, log 2 at the start,
and a folder that stock classes open. What needs TRL is skipped where it is not installed."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from hacl.config import ObjectiveConfig
from hacl.config_io import ConfigError
from hacl.data.records import HallucinatedCaption, Record, read_records
from hacl.data.templates import SequenceEncoder
from hacl.training.dpo_data import PreferenceCollator, draw_pair, plan_pairs, usable_records
from hacl.training.dpo_settings import DpoSettings, load_dpo_settings
from tests.tiny import write_tiny_records

PROMPT = "describe the image"


def needs_trl():
    return pytest.importorskip("trl", reason="DPO is TRL's: pip install -e .[dpo]")


def record(name="r", captions=("a red square", "the red square"), edits=(("a blue square", "attribute", 0),)):
    hallucinated = tuple(HallucinatedCaption(text=text, type=kind, of=of) for text, kind, of in edits)
    return Record(
        id=name, images=(f"images/{name}.png",), image_id=name, captions=tuple(captions), hallucinated=hallucinated,
        conversation=(), objects=None, extra={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    return read_records(write_tiny_records(folder, 12, text_only=2)), folder


@pytest.fixture(scope="module")
def processor(tiny_llava):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_llava)


def encoder_of(processor, template="chat", max_length=200):
    return SequenceEncoder(processor, template=template, prompt=PROMPT, max_length=max_length, max_caption_length=64)


def with_second_caption(one):
    edits = [replace(edit, of=0) for edit in one.hallucinated]
    other = HallucinatedCaption(text="a red circle on the right", type="attribute", of=1)
    return replace(one, captions=(one.captions[0], "a red circle on the left"), hallucinated=(*edits, other))


def rows_of(pairs):
    return [asdict(pair) for pair in pairs]


def test_a_pair_is_a_caption_and_an_edit_of_that_caption():
    many = record(edits=[("a blue square", "attribute", 0), ("the blue square", "attribute", 1)])
    seen = {(p.chosen, p.rejected) for p in (draw_pair(many, prompt=PROMPT, epoch=e) for e in range(40))}
    assert seen == {("a red square", "a blue square"), ("the red square", "the blue square")}


def test_a_caption_without_an_edit_gives_way_to_one_that_has_one():
    lopsided = record(edits=[("the blue square", "attribute", 1)])
    assert {draw_pair(lopsided, prompt=PROMPT, epoch=e).chosen for e in range(20)} == {"the red square"}


def test_only_the_wanted_types_are_rejected_captions():
    mixed = record(edits=[("a blue square", "attribute", 0), ("a red circle", "object", 0)])
    other = record("other")
    assert [r.id for r in usable_records([mixed, other], ["object"])] == ["r"]
    drawn = {draw_pair(mixed, prompt=PROMPT, types=["object"], epoch=e).rejected for e in range(20)}
    assert drawn == {"a red circle"}
    with pytest.raises(ValueError, match="of type event"):
        usable_records([mixed, other], ["event"])


def test_the_pairs_are_those_that_the_margin_arm_sees(data, processor):
    """Same seed, epoch and record: the same two sequences, token for token."""
    from hacl.data.dataset import TrainingDataset
    from hacl.training.dpo_data import usable_records as usable

    records = [with_second_caption(r) for r in usable(data[0])]
    encoder = encoder_of(processor, template="plain")
    objective = ObjectiveConfig(contrastive_weight=0.0, likelihood_margin_weight=0.3, num_hallucinated=1)
    dataset = TrainingDataset(records, encoder, image_root=data[1], objective=objective, seed=7)
    collate = PreferenceCollator(encoder, data[1])
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        pairs = [draw_pair(r, prompt=PROMPT, seed=7, epoch=epoch) for r in records]
        batch = collate(rows_of(pairs))
        for i in range(len(records)):
            sample = dataset[i]
            for row, sequence in ((i, sample.generation), (len(records) + i, sample.hallucinated_generations[0])):
                kept = batch["attention_mask"][row].bool()
                assert batch["input_ids"][row][kept].tolist() == sequence.ids
                assert batch["completion_mask"][row][kept].bool().tolist() == sequence.is_label
            assert torch.equal(batch["pixel_values"][i], sample.pixels[0]["pixel_values"][0])


def test_a_run_sees_every_record_once_per_epoch_in_an_order_of_its_seed():
    records = [record(f"r{n}") for n in range(6)]
    plan = plan_pairs(records, prompt=PROMPT, count=12, global_batch=3, seed=1)
    names = [pair.record_id for pair in plan]
    assert sorted(names[:6]) == sorted(names[6:]) == [f"r{n}" for n in range(6)]
    assert names[:6] != names[6:]
    assert plan == plan_pairs(records, prompt=PROMPT, count=12, global_batch=3, seed=1)
    assert plan != plan_pairs(records, prompt=PROMPT, count=12, global_batch=3, seed=2)


def test_padding_and_the_prompt_are_no_part_of_an_answer(processor, data):
    records = usable_records(data[0])[:3]
    pairs = plan_pairs(records, prompt=PROMPT, count=3, global_batch=3)
    batch = PreferenceCollator(encoder_of(processor), data[1])(rows_of(pairs))
    assert batch["input_ids"].shape[0] == 2 * batch["pixel_values"].shape[0] // 2 == 6
    assert not (batch["completion_mask"].bool() & ~batch["attention_mask"].bool()).any()
    answers = [
        processor.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert answers == [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def test_a_length_that_cuts_off_an_answer_names_the_record(processor, data):
    records = usable_records(data[0])[:1]
    short = PreferenceCollator(encoder_of(processor, max_length=22), data[1])
    with pytest.raises(ValueError, match=f"record '{records[0].id}'.*max_length"):
        short(rows_of([draw_pair(records[0], prompt=PROMPT)]))


def test_settings_are_checked_by_name():
    with pytest.raises(ConfigError, match="beta=0.0"):
        load_dpo_settings(None, ["beta=0"])
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        load_dpo_settings(None, ["learning_rates=1"])
    with pytest.raises(ConfigError, match=r"set modules=\[llm\]"):
        load_dpo_settings(None, ["lora_rank=4"])
    with pytest.raises(ConfigError, match="some of object"):
        load_dpo_settings(None, ["types=[colour]"])


def test_the_pocket_configuration_sees_as_many_images_as_the_training_arms():
    from hacl.config import load_config
    from hacl.pocket.experiment import CONFIGS, TUNING_TYPES

    ours, theirs = load_dpo_settings(CONFIGS / "dpo.yaml"), load_config(CONFIGS / "margin.yaml", [])
    assert ours.max_steps == theirs.train.max_steps
    assert ours.batch_size == theirs.train.per_device_batch_size
    assert tuple(ours.types) == TUNING_TYPES
    assert (ours.template, ours.prompt) == (theirs.data.template, theirs.data.prompt)


def test_without_trl_the_error_says_what_to_install(monkeypatch, tiny_llava, data, tmp_path):
    import importlib.util

    from hacl.training.dpo import tune_dpo

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e \.\[dpo\]"):
        tune_dpo(tiny_llava, data[0], data[1], DpoSettings(), tmp_path / "run")


def settings(**changes):
    return DpoSettings(
        **{"max_steps": 4, "batch_size": 5, "prompt": PROMPT, "scheduler": "constant", "warmup": 0} | changes
    )


@pytest.fixture
def trainer(tiny_model, data, tmp_path):
    needs_trl()
    from hacl.training.dpo import build_dpo_trainer

    return build_dpo_trainer(tiny_model, usable_records(data[0]), data[1], settings(), tmp_path)


def first_batch(trainer, count=5):
    rows = [trainer.train_dataset[i] for i in range(count)]
    return rows, trainer.data_collator(rows)


def test_before_the_first_step_the_loss_is_log_2_in_training_mode(trainer):
    """A tower with batch norm in training mode would already differ from the reference."""
    _, batch = first_batch(trainer)
    modes = []
    trainer.model.model.vision_tower.register_forward_hook(lambda tower, *_: modes.append(tower.training))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    assert modes == [False]
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_log_probabilities_are_those_of_the_evaluation(trainer, data):
    from hacl.evaluation.likelihood import log_likelihoods

    rows, batch = first_batch(trainer)
    for which, found in zip(
        ("chosen", "rejected"), trainer.compute_ref_log_probs(trainer.ref_model, batch), strict=True
    ):
        wanted = log_likelihoods(
            trainer.ref_model, trainer.processing_class, [data[1] / row["image"] for row in rows],
            [row[which] for row in rows], prompt=PROMPT, template="chat",
        )  # fmt: skip
        assert found.tolist() == pytest.approx(wanted.total.tolist(), abs=1e-4)


def test_trls_own_collator_makes_the_same_rows_where_prompt_and_caption_are_given_as_it_wants_them(trainer, data):
    """With BOS and EOS written out, and a tokenizer whose tokens do not reach over the seam."""
    from PIL import Image
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    rows, ours = first_batch(trainer, 3)
    processor = trainer.processing_class
    tokenizer = processor.tokenizer
    encoder = trainer.data_collator.encoder
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    prompt = tokenizer.bos_token + encoder.chat.render(turns, add_generation_prompt=True)
    theirs = DataCollatorForVisionPreference(processor)(
        [
            {
                "images": [Image.open(data[1] / row["image"]).convert("RGB")],
                "prompt": prompt,
                "chosen": row["chosen"] + tokenizer.eos_token,
                "rejected": row["rejected"] + tokenizer.eos_token,
            }
            for row in rows
        ]
    )
    for name in ("input_ids", "attention_mask", "completion_mask"):
        assert ours[name].tolist() == theirs[name].tolist(), name
    assert torch.allclose(ours["pixel_values"], theirs["pixel_values"])


def test_a_step_runs_the_decoder_once_for_the_policy_and_once_for_the_reference_on_both_captions(trainer):
    rows, batch = first_batch(trainer)
    seen = []
    for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        model.model.language_model.register_forward_hook(
            lambda module, args, kwargs, output, name=name: seen.append((name, len(output[0]))), with_kwargs=True
        )
    trainer.compute_loss(trainer.model, batch)
    assert seen == [("policy", 2 * len(rows)), ("reference", 2 * len(rows))]


def test_training_raises_the_margin_on_its_pairs_and_leaves_tower_and_reference_alone(tiny_fast_vlm, data, tmp_path):
    needs_trl()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from hacl.evaluation.likelihood import caption_margins
    from hacl.training.dpo import tune_dpo

    records = usable_records(data[0])
    run = settings(max_steps=40, batch_size=10, learning_rate=3e-3)
    folder = tune_dpo(tiny_fast_vlm, records, data[1], run, tmp_path / "run", verify=False)
    base, tuned = (AutoModelForImageTextToText.from_pretrained(path).eval() for path in (tiny_fast_vlm, folder))
    processor = AutoProcessor.from_pretrained(folder)
    before, after = (
        caption_margins(model, processor, records, data[1], prompt=PROMPT, template="chat", progress=False).metrics
        for model in (base, tuned)
    )
    assert after["margin_accuracy_sum"] > before["margin_accuracy_sum"] + 0.2
    old, new = base.state_dict(), tuned.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and not any("vision_tower" in name for name in changed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["step"] == 40 and result["pairs"] == 400 and result["flops"] == 40 * result["flops_per_step"] > 0


def test_lora_starts_at_log_2_trains_only_its_matrices_and_is_merged(tiny_llava, data, tmp_path):
    needs_trl()
    from transformers import AutoModelForImageTextToText

    from hacl.training.dpo import build_dpo_trainer, tune_dpo

    records = usable_records(data[0])
    lora = settings(lora_rank=4, lora_alpha=8.0, modules=["llm"], learning_rate=1e-2)
    trainer = build_dpo_trainer(tiny_llava, records, data[1], lora, tmp_path / "look")
    assert {name.split(".")[-3] for name, p in trainer.model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    assert trainer.ref_model is None
    loss = trainer.compute_loss(trainer.model.train(), first_batch(trainer)[1])
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
    folder = tune_dpo(tiny_llava, records, data[1], lora, tmp_path / "run", verify=False)
    base, tuned = (AutoModelForImageTextToText.from_pretrained(path).state_dict() for path in (tiny_llava, folder))
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert base.keys() == tuned.keys() and changed
    assert all(".layers." in name and "language_model" in name for name in changed)


def test_a_folder_of_another_run_is_refused_by_the_setting_that_differs(tiny_llava, data, tmp_path):
    needs_trl()
    from hacl.training.dpo import tune_dpo

    run = settings(max_steps=1)
    folder = tune_dpo(tiny_llava, data[0], data[1], run, tmp_path / "run", verify=False)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert tune_dpo(tiny_llava, data[0], data[1], run, tmp_path / "run", verify=False) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp, "a finished run is not done again"
    with pytest.raises(ValueError, match=r"settings\.beta=0\.1 and not 0\.5"):
        tune_dpo(tiny_llava, data[0], data[1], settings(max_steps=1, beta=0.5), tmp_path / "run", verify=False)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_run_that_diverges_stops_and_says_where(name):
    from types import SimpleNamespace

    from hacl.training.dpo import _StopDiverged

    state = SimpleNamespace(global_step=7)
    _StopDiverged().on_log(None, state, None, logs={name: "0.69"})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"step 7: {name} is .* lower learning_rate"):
            _StopDiverged().on_log(None, state, None, logs={name: value})


def test_an_export_of_weights_that_are_not_numbers_is_refused(monkeypatch, tmp_path):
    from hacl.training import export

    report = {
        "unexpected_keys": [], "missing_keys": [], "max_logit_difference": math.nan, "tolerance": 1e-4,
        "same_tokens": True,
    }  # fmt: skip
    done = type("Done", (), {"returncode": 0, "stdout": json.dumps(report)})()
    monkeypatch.setattr(export.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(export.ExportError, match="differs from the trained one"):
        export.check_reload(tmp_path)
