"""Promises about folding: equal to the steered model where it is exact, refused by name everywhere else."""

from __future__ import annotations

import json

import pytest
import torch

from hacl.steering import ComposeSteerer, ConceptSteerer, FlexACSteerer, MeanSteerer, RandomSteerer, steering
from hacl.steering.fold import RECORD, FoldError, fold
from hacl.steering.static import TableSteerer
from hacl.steering.vectors import ArtefactError
from tests.reference.steering_inputs import WIDTH, generate, hook_count, prompts, vectors


def stock(folder):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)


STEERERS = {
    "mean": lambda: MeanSteerer(vectors(0, 1), alpha=0.5),
    "negative layer": lambda: MeanSteerer(vectors(-1), alpha=-1.0),
    "unit": lambda: MeanSteerer(vectors(0), norm="unit", norms={0: 3.0}),
    "random": lambda: RandomSteerer({1: 2.0}, WIDTH, seed=1),
    "sum": lambda: ComposeSteerer([MeanSteerer(vectors(0, 1)), RandomSteerer({0: 2.0}, WIDTH, seed=1)], [1.0, -0.5]),
    "constant FlexAC": lambda: FlexACSteerer(vectors(0, 1), gate="const", norm="none", policy="all", weights=[0.7]),
}


@pytest.mark.parametrize("family, name", [*(("llava", name) for name in STEERERS), ("fast_vlm", "mean")])
def test_a_folded_checkpoint_is_stock_and_equals_the_steered_model(request, tmp_path, family, name):
    tiny_model = request.getfixturevalue(f"tiny_{family}")
    steerer = STEERERS[name]()
    record = fold(steerer, tiny_model, tmp_path / "out")
    folded, info = stock(tmp_path / "out")
    original, _ = stock(tiny_model)
    assert not info["unexpected_keys"] and not info["missing_keys"] and type(folded) is type(original)
    inputs = prompts(original).batch()
    with steering(original, steerer):
        tokens, logits = generate(original, inputs)
    own_tokens, own_logits = generate(folded, inputs)
    assert torch.equal(tokens, own_tokens) and hook_count(folded) <= hook_count(original)
    torch.testing.assert_close(own_logits, logits, atol=1e-5, rtol=1e-4)
    assert record["max_logit_change"] > 100 * record["tolerance"] >= record["max_logit_difference"]
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == record


def test_one_vector_serves_the_layers_that_are_named_and_alpha_is_one_number(tiny_llava, tmp_path):
    vector = vectors(0)[0]
    assert fold(MeanSteerer(vector), tiny_llava, tmp_path / "out", layers=[1], alpha=0.25)["layers"] == [1]
    bias = stock(tmp_path / "out")[0].state_dict()["model.language_model.layers.1.mlp.down_proj.bias"]
    torch.testing.assert_close(bias, 0.25 * vector)
    with pytest.raises(FoldError, match="one"):
        fold(MeanSteerer(vector), tiny_llava, tmp_path / "other", layers=[1], alpha=[0.25, 1.0])


def test_folding_twice_adds_up(tiny_llava, tmp_path):
    first, second = MeanSteerer(vectors(0)), MeanSteerer(vectors(0, seed=5))
    fold(first, tiny_llava, tmp_path / "once")
    fold(second, tmp_path / "once", tmp_path / "twice")
    bias = stock(tmp_path / "twice")[0].state_dict()["model.language_model.layers.0.mlp.down_proj.bias"]
    torch.testing.assert_close(bias, vectors(0)[0] + vectors(0, seed=5)[0])


def test_half_precision_stays_half_precision(tiny_llava, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoModelForImageTextToText.from_pretrained(tiny_llava).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(tiny_llava).save_pretrained(tmp_path / "half")
    record = fold(MeanSteerer(vectors(0)), tmp_path / "half", tmp_path / "out")
    folded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert folded.dtype == torch.bfloat16 and record["max_logit_difference"] <= record["tolerance"]


def test_processor_and_template_come_along(tiny_llava, tmp_path):
    from transformers import AutoProcessor

    fold(MeanSteerer(vectors(0)), tiny_llava, tmp_path / "out")
    own, base = (AutoProcessor.from_pretrained(folder) for folder in (tmp_path / "out", tiny_llava))
    assert own.chat_template == base.chat_template and own.tokenizer("red").input_ids == base.tokenizer("red").input_ids


class Reader(MeanSteerer):
    kind = "reader"

    def adjust(self, layer, h_RTD, shift, mask):
        return super().adjust(layer, h_RTD, shift, mask)


REFUSED = {
    "policy generated": (lambda: MeanSteerer(vectors(0), policy="generated"), "policy generated"),
    "norm restore": (lambda: MeanSteerer(vectors(0), norm="preserve"), "norm 'preserve'"),
    "clip": (lambda: MeanSteerer(vectors(0), norm="clip"), "norm 'clip'"),
    "gate": (lambda: FlexACSteerer(vectors(0), norm="none", policy="all"), "gate 'released'"),
    "FlexAC restoring": (lambda: FlexACSteerer(vectors(0), gate="const", policy="all"), "norm 'preserve'"),
    "table": (lambda: TableSteerer(vectors(0, rows=2), ["a", "b"]), "per sample"),
    "random per sample": (lambda: RandomSteerer({0: 1.0}, WIDTH, seed=0, per_sample=True), "per sample"),
    "concept": (lambda: ConceptSteerer(vectors(0, rows=2), vectors(0, rows=2)), "reads the state"),
    "prompt reader": (
        lambda: ConceptSteerer(vectors(0, rows=2), vectors(0, rows=2), assign="last_prompt"),
        "reads the prompt",
    ),
    "own adjust": (lambda: Reader(vectors(0)), "reads the state"),
    "a sum with a table": (
        lambda: ComposeSteerer([MeanSteerer(vectors(0)), TableSteerer(vectors(0, rows=2), ["a", "b"])]),
        "per sample",
    ),
    "final norm": (lambda: MeanSteerer({"final_norm": vectors(0)[0]}), "final_norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_bias_can_do_is_refused_by_name(tiny_llava, tmp_path, name):
    make, words = REFUSED[name]
    with pytest.raises(FoldError, match=words):
        fold(make(), tiny_llava, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


TEXT = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip


@pytest.mark.parametrize(
    "family, more, words",
    [
        ("Qwen2", {}, "no bias"),
        ("Mistral", {}, "no bias"),
        ("Gemma2", {"head_dim": 8}, "no bias"),
        ("Mixtral", {"num_local_experts": 2}, "mixture of experts"),
        ("Granite", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
        ("Granite", {}, "not proven"),
        ("Llama", {}, None),
    ],
)
def test_text_models_fold_in_the_llama_family_and_no_other(tmp_path, family, more, words):
    import transformers

    config = getattr(transformers, f"{family}Config")(**TEXT, **more, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.save_pretrained(tmp_path / "base")
    steerer = MeanSteerer({1: torch.ones(16)})
    if words:
        with pytest.raises(FoldError, match=words):
            fold(steerer, tmp_path / "base", tmp_path / "out")
    else:
        assert fold(steerer, tmp_path / "base", tmp_path / "out")["class"] == "LlamaForCausalLM"


def test_another_model_an_existing_folder_and_layers_that_are_not_there_are_refused(
    tiny_llava, tiny_fast_vlm, tmp_path
):
    from hacl.models.identity import fingerprint

    other = MeanSteerer(vectors(0), model=fingerprint(tiny_fast_vlm))
    with pytest.raises(ArtefactError, match="made for the model"):
        fold(other, tiny_llava, tmp_path / "out")
    with pytest.raises(FoldError, match="no vector for layer 1"):
        fold(MeanSteerer(vectors(0)), tiny_llava, tmp_path / "out", layers=[1])
    with pytest.raises(ValueError, match="layer 9"):
        fold(MeanSteerer(vectors(9)), tiny_llava, tmp_path / "out")
    with pytest.raises(FileExistsError):
        fold(MeanSteerer(vectors(0)), tiny_llava, tmp_path)


def test_a_fold_that_does_not_equal_the_steered_model_leaves_nothing_behind(tiny_llava, tmp_path, monkeypatch):
    import hacl.steering.fold as module

    write = module._write
    monkeypatch.setattr(module, "_write", lambda model, steps, *rest: write(model, {0: 0.9 * steps[0]}, *rest))
    with pytest.raises(FoldError, match="logits differ"):
        fold(MeanSteerer(vectors(0)), tiny_llava, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
