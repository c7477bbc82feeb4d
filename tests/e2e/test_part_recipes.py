"""Models made of parts train by their recipes, from the command line: LLaVA's one linear map, MiniGPT-4's one."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import train
from scripts import convert_llava, convert_minigpt4
from tests.reference.minigpt4 import MiniGPT4
from tests.reference.original_llava import OriginalLlava
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LINEAR_1 = {f"model.multi_modal_projector.linear_1.{part}" for part in ("weight", "bias")}
PROJECTION = {f"language_projection.{part}" for part in ("weight", "bias")}


def make_llava(folder):
    original = OriginalLlava()
    vision = original.save_tower(folder / "clip")
    original.llm.save_pretrained(folder / "vicuna")
    from tests.reference.original_llava import text_tokenizer

    text_tokenizer().save_pretrained(folder / "vicuna")
    parts = ["join", folder / "vicuna", "--vision", vision, "--projector", "linear", "--out", folder / "model"]
    assert convert_llava.main([str(part) for part in parts]) == 0


def make_minigpt4(folder):
    paths = MiniGPT4().save(folder)
    parts = ["--blip2", paths["blip2"], "--llm", paths["llm"], "--out", folder / "model"]
    assert convert_minigpt4.main([str(part) for part in parts]) == 0


@pytest.mark.parametrize(
    ("recipes", "make", "trained"), [("llava_v1", make_llava, LINEAR_1), ("minigpt4", make_minigpt4, PROJECTION)]
)
def test_a_model_of_parts_trains_its_linear_map_and_nothing_else(recipes, make, trained, tmp_path):
    make(tmp_path)
    records = write_tiny_records(tmp_path / "records", 8)
    for stage in ("stage1", "posthoc"):
        run = tmp_path / stage
        words = [
            str(ROOT / f"configs/{recipes}/{stage}.yaml"), f"model.path={tmp_path / 'model'}", f"data.path={records}",
            f"train.output_dir={run}", "train.max_steps=2", "train.per_device_batch_size=4", "train.num_workers=0",
            "train.deepspeed=null", "train.warmup=0", "log.steps=1", "log.sample_steps=0", "model.dtype=float32",
            "train.bf16=false",
        ]  # fmt: skip
        assert train.main(words) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2]
        (weights,) = run.glob("checkpoint-2/**/trained.safetensors")
        assert set(load_file(weights)) == trained
