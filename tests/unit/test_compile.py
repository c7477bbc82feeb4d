"""Compiled decoder blocks give the same step, and few shapes occur, so that few are compiled."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters

from hacl.config import load_config
from hacl.config_io import ConfigError
from hacl.data.collate import PackedCollator
from hacl.data.packing import pack_tightly
from hacl.models import attention
from hacl.training import build as build_backbone
from hacl.training import run
from hacl.training.kernels import compile_blocks, implementation
from hacl.training.objective import HaclModel
from tests.tiny import write_tiny_records
from tests.unit.test_attention import FORMS, assert_equal_steps, step, taken
from tests.unit.test_forms import encoder_of
from tests.unit.test_packed_step import build, make_records


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def with_lora(model):
    torch.manual_seed(1)
    settings = LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|down_proj)", lora_dropout=0.0)
    backbone = get_peft_model(model.backbone, settings, autocast_adapter_dtype=False)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.adapter.projector.requires_grad_(True)
    return HaclModel(backbone, model.objective, heads=model.heads).train()


@pytest.mark.parametrize(
    ("form", "extra", "backend"),
    [("in place", "", "aot_eager"), ("block", "recomputed", "eager"), ("shared", "recomputed lora", "aot_eager")],
)
def test_compiled_blocks_give_the_same_step_and_share_one_graph(tiny_llava, tmp_path, form, extra, backend):
    results = []
    for is_compiled in (False, True):
        model, batch = step(tiny_llava, tmp_path, "sdpa", **FORMS[form])
        if "lora" in extra:
            model = with_lora(model)
        if "recomputed" in extra:
            model.gradient_checkpointing_enable()
            model.train()
        names = [name for name, _ in model.named_parameters()]
        if is_compiled:
            counters.clear()
            compile_blocks(model.adapter, backend=backend)
            assert [name for name, _ in model.named_parameters()] == names, "checkpoints keep their names"
        results.append(taken(model, batch))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert_equal_steps(results[1], results[0], 1e-9)


def test_rounded_rows_repeat_their_shapes_and_so_do_compiled_graphs(tiny_llava, tmp_path):
    model, samples, _ = build(tiny_llava, tmp_path, make_records(tmp_path), num_hallucinated=2, form="eos_branch")
    attention.set_attention(model.adapter.decoder, "sdpa")
    collate = PackedCollator(encoder_of(tiny_llava), model.objective, pad_to_multiple=32)
    compile_blocks(model.adapter, backend="eager")
    counters.clear()
    shapes, odd = set(), set()
    for chosen in ([0, 1, 2], [1, 2, 3], [2, 4, 0], [3, 4, 1], [4, 0, 1], [0, 3, 2], [1, 3, 4], [2, 0, 1]):
        batch = collate([samples[i] for i in chosen])
        shapes.add(tuple(batch["segment_ids"].shape))
        odd.add(
            tuple(PackedCollator(collate.encoder, model.objective)([samples[i] for i in chosen])["input_ids"].shape)
        )
        model(**batch).loss.backward()
    assert all(tokens % 32 == 0 for _, tokens in shapes)
    assert counters["stats"]["unique_graphs"] == len(shapes) <= 3 < len(odd)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_up_uses_the_room_it_makes(seed):
    lengths = torch.randint(1, 90, (23,), generator=torch.Generator().manual_seed(seed)).tolist()
    places, rows, columns = pack_tightly(lengths, multiple=64)
    taken_RT = torch.zeros(rows, columns)
    for (row, column), length in zip(places, lengths, strict=True):
        taken_RT[row, column : column + length] += 1
    assert columns % 64 == 0 and taken_RT.max() == 1 and taken_RT.sum() == sum(lengths)
    assert pack_tightly([40, 40, 24, 24], multiple=64)[1:] == (2, 64), "a row of 40 would hold no second sequence"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "train.length_multiple=64 or 128"),
        (["train.length_multiple=64", "train.deepspeed=3"], "ZeRO-3"),
        (["train.length_multiple=64", "model.attn_implementation=segments"], "use auto, sdpa or flex_attention"),
    ],
)
def test_what_cannot_be_compiled_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, ["train.compile=true", *settings])


def test_a_run_gets_the_attention_and_the_blocks_that_it_asks_for(tiny_llava, tmp_path):
    path = write_tiny_records(tmp_path, 2)
    settings = [f"model.path={tiny_llava}", f"data.path={path}"]
    asked = {
        "segments": [],
        "eager": ["model.attn_implementation=eager"],
        "sdpa": ["train.compile=true", "train.length_multiple=64"],
    }
    for name, overrides in asked.items():
        if name == "segments" and torch.cuda.is_available():
            continue
        config = load_config(None, [*settings, *overrides])
        model = run.build_model(config, run.read_inputs(config))
        assert model.adapter.decoder.config._attn_implementation == name
        assert model.adapter.vision_tower.config._attn_implementation == ("eager" if name == "eager" else "sdpa")
        assert all((block._compiled_call_impl is not None) == config.train.compile for block in model.adapter.blocks)


def test_a_decoder_that_looks_back_less_far_than_a_sequence_is_long_stops_the_run(tiny_llava, tmp_path):
    config = load_config(None, [f"model.path={tiny_llava}", f"data.path={write_tiny_records(tmp_path, 2)}"])
    backbone = build_backbone.load_backbone(config.model)
    backbone.model.language_model.config.sliding_window = 100
    with pytest.raises(ValueError, match="set data.max_length and data.max_caption_length to 99"):
        run.build_model(config, run.read_inputs(config), backbone=backbone)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto chooses by device")
def test_compiled_blocks_take_one_mask_on_a_cpu():
    assert implementation(load_config(None, ["train.compile=true", "train.length_multiple=64"])) == "sdpa"
    assert implementation(load_config(None, ["train.length_multiple=64"])) == "segments"
