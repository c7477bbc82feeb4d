"""Promises of scripts/compare.py: two checkpoints and records in, a report with controls out; every step on its own."""

import json
import shutil

import pytest
import torch
import yaml

from hacl.evaluation.runner.source import ModelSource
from scripts.compare import main
from tests.tiny import write_tiny_records

PROMPT = ["--prompt", "describe the picture", "--template", "chat", "--device", "cpu", "--quiet"]
SMALL = ["-k", "3", "--words", "neutral", "--splits", "2", "--bootstrap", "20", "--controls", "5", "--min-size", "2"]
BEHAVIOUR = ["--behaviour-concepts", "2", "--alphas", "0.5", "1", "--rank", "2", "--max-new-tokens", "6",
             "--random-controls", "1", "--policies", "all"]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_llava):
    """The same model without and with a constant vector added to the output of its first block, and records."""
    from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

    root = tmp_path_factory.mktemp("pair")
    plain = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    plain.config.text_config.mlp_bias = True
    model = LlavaForConditionalGeneration(plain.config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(plain.state_dict()[name]) if name in plain.state_dict() else value.zero_()
    bias = next(value for name, value in model.named_parameters() if name.endswith("layers.0.mlp.down_proj.bias"))
    for name, scale in (("original", 0.0), ("tuned", 0.5)):
        with torch.no_grad():
            bias.copy_(scale * torch.randn(bias.shape, generator=torch.Generator().manual_seed(1)))
        shutil.copytree(tiny_llava, root / name)
        model.save_pretrained(root / name)
    path = write_tiny_records(root, 24)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    shapes = ({"square": 1}, {"circle": 1})
    path.write_text("".join(json.dumps(row | {"objects": shapes[n % 2]}) + "\n" for n, row in enumerate(rows)))
    (root / "vocabulary.json").write_text('{"square": "square", "circle": "circle"}')
    return root


def compare(pair, out, *more, command=(), tuned="tuned"):
    models = ["--original", str(pair / "original"), "--tuned", str(pair / tuned)]
    data = ["--records", str(pair / "records.jsonl"), "--image-root", str(pair)]
    return main([*command, *models, *data, "--out", str(out), *PROMPT, *more])


@pytest.fixture(scope="module")
def report(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    objects = ["--vocabulary", str(pair / "vocabulary.json"), "--pope-images", "4", "--gate"]
    outside = ["--outside", str(pair / "records.jsonl"), "--measure", "chosen", "--styles", "colour", "positions"]
    assert compare(pair, out, "--layers", "0", "1", "final_norm", *SMALL, *BEHAVIOUR, *objects, *outside) == 0
    return out


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def test_a_planted_shift_is_found_and_gives_the_whole_behaviour_back(report):
    found = read(report / "layers/layer_0.mean_generated/analysis.json")
    overall = found["shifts"]["overall"]
    assert overall["consistency"] == pytest.approx(1, abs=1e-4) and overall["explained"] == pytest.approx(1, abs=1e-4)
    assert {row["control"] for row in found["recovery"]["controls"]} >= {"global", "random", "permuted", "in_sample"}
    behaviour = read(report / "behaviour.json")
    variants = {row["name"]: row for row in behaviour["variants"]}
    assert variants["global"]["share"] == pytest.approx(1, abs=1e-3) and variants["global"]["layers"] == "0"
    assert variants["global"]["alpha"] == 1 and not behaviour["gate_failures"]
    assert all(row["share"] < 0.9 for name, row in variants.items() if name.startswith("control/"))
    asked = {row["measure"] for row in behaviour["measures"]}
    assert {"CHAIR_i", "pope_random_f1", "margin_accuracy", "agreement_token_f1", "colour_words"} <= asked


def test_images_are_fitted_on_chosen_on_or_confirmed_on_never_two_of_them(report):
    meta = read(report / "behaviour.json")["meta"]
    sizes = meta["fitted_on"], meta["validation"]["images"], meta["test"]["images"]
    assert sizes == (12, 6, 6)


def test_the_page_is_self_contained_and_shows_words_controls_and_replies(report):
    page = (report / "report.html").read_text()
    for text in (
        "one shift for all",
        "in-sample (tautology)",
        "control/random_0",
        "comes back without training",
        "data:image/png;base64",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    for table in ("layers/layer_0.mean_generated/analysis_shift_map", "behaviour_curve", "summary_layers"):
        assert (report / f"{table}.csv").read_text().count("\n") > 1


def test_what_is_finished_is_not_computed_again(pair, report, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr("hacl.compare.comparison.analyse", refuse)
    monkeypatch.setattr("hacl.compare.recover_behaviour.fit_methods", refuse)
    objects = ["--vocabulary", str(pair / "vocabulary.json"), "--pope-images", "4"]
    outside = ["--outside", str(pair / "records.jsonl"), "--measure", "chosen", "--styles", "colour", "positions"]
    assert compare(pair, report, "--layers", "0", "1", "final_norm", *SMALL, *BEHAVIOUR, *objects, *outside) == 0
    with pytest.raises(AssertionError, match="nothing is to be computed"):
        compare(pair, report, "--layers", "0", "1", "final_norm", *SMALL, "--seed", "1", "--no-behaviour")


@pytest.mark.parametrize("change", ["vocabulary", "fit share", "styles", "truth", "outside", "dtype"])
def test_behaviour_is_measured_again_when_anything_it_depends_on_changes(pair, report, monkeypatch, change):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("hacl.compare.recover_behaviour.fit_methods", refuse)
    vocabulary, styles, more = pair / "vocabulary.json", ["colour", "positions"], []
    if change == "vocabulary":
        vocabulary = pair / "words.json"
        vocabulary.write_text('{"square": "square", "circle": "circle", "disc": "circle"}')
    if change == "styles":
        styles = ["colour", "sizes"]
    if change == "fit share":
        more = ["--fit-share", "0.4"]
    if change == "dtype":
        more = ["--dtype", "bfloat16"]
    if change == "truth":
        rows = [json.loads(line) for line in (pair / "records.jsonl").read_text().splitlines()]
        path = pair / "truth.jsonl"
        path.write_text("".join(json.dumps(row | {"objects": {"square": 1, "circle": 1}}) + "\n" for row in rows))
        more = ["--records", str(path)]
    outside = ["--outside", str(pair / "records.jsonl"), "--measure", "chosen", "--styles", *styles]
    if change == "outside":
        (pair / "few.jsonl").write_text("\n".join((pair / "records.jsonl").read_text().splitlines()[:5]))
        outside[1] = str(pair / "few.jsonl")
    objects = ["--vocabulary", str(vocabulary), "--pope-images", "4", "--layers", "0", "1", "final_norm"]
    with pytest.raises(AssertionError, match="computed again"):
        compare(pair, report, *objects, *BEHAVIOUR, *outside, *more, command=["behaviour"])


def test_states_of_other_texts_are_analysed_anew(pair, tmp_path):
    """Same numbers of rows, same settings: only the texts differ, after the features were thrown away."""
    options = ["--layers", "0", *SMALL, "--no-behaviour"]
    assert compare(pair, tmp_path, *options) == 0
    before = read(tmp_path / "layers/layer_0.mean_generated/analysis.json")
    rows = [json.loads(line) for line in (pair / "records.jsonl").read_text().splitlines()]
    other = pair / "turned.jsonl"
    captions = [row["captions"][0] for row in rows]
    turned = zip(rows, [*captions[1:], "a green circle"], strict=True)
    other.write_text("".join(json.dumps(row | {"captions": [text], "hallucinated": []}) + "\n" for row, text in turned))
    shutil.rmtree(tmp_path / "features")
    assert compare(pair, tmp_path, *options, "--records", str(other)) == 0
    after = read(tmp_path / "layers/layer_0.mean_generated/analysis.json")
    assert after["made_from"] != before["made_from"]


def test_texts_that_a_model_wrote_are_written_again_for_another_length_and_for_more_samples(pair, tmp_path):
    options = ["--layers", "0", *SMALL, "--no-behaviour", "--answer", "tuned"]
    assert compare(pair, tmp_path, *options, "--limit", "12", "--max-new-tokens", "3") == 0
    path = tmp_path / "features/texts_tuned.json"
    short = read(path)["texts"]
    assert compare(pair, tmp_path, *options, "--limit", "16", "--max-new-tokens", "3") == 0
    more = read(path)["texts"]
    assert len(short) == 12 and len(more) == 16 and short.items() <= more.items()
    shutil.rmtree(tmp_path / "features/original")
    shutil.rmtree(tmp_path / "features/tuned")
    assert compare(pair, tmp_path, *options, "--limit", "16", "--max-new-tokens", "9") == 0
    assert read(path)["texts"] != more


def test_questions_are_asked_about_as_many_images_as_were_named_none_of_them_fitted_or_chosen_on(pair, tmp_path):
    from hacl.compare.arguments import parse
    from hacl.compare.command import _questions, settings_of
    from hacl.compare.comparison import Comparison

    models = ["--original", str(pair / "original"), "--tuned", str(pair / "tuned")]
    data = ["--records", str(pair / "records.jsonl"), "--image-root", str(pair), "--out", str(tmp_path), *PROMPT]
    comparison = Comparison(settings_of(parse([*models, *data])), progress=False)
    fit_on, measure_on, confirmed_on = comparison.parted
    asked = _questions(comparison, 4, 0)
    images = {question.image_id for questions in asked["questions"].values() for question in questions}
    assert len(images) == 4 and images <= {sample.group for sample in confirmed_on}
    assert not images & {sample.group for sample in fit_on} and len(confirmed_on) == len(measure_on) // 2


def test_layers_given_as_ranges_are_steered_at_in_forward_order(pair, tmp_path):
    from hacl.compare.arguments import parse
    from hacl.compare.command import settings_of
    from hacl.compare.comparison import Comparison

    models = ["--original", str(pair / "original"), "--tuned", str(pair / "tuned")]
    data = ["--records", str(pair / "records.jsonl"), "--image-root", str(pair), "--out", str(tmp_path), *PROMPT]

    def steered(*given):
        return Comparison(settings_of(parse([*models, *data, *given])), progress=False).steered_layers()

    assert steered("--layers", "0-1", "embed", "final_norm") == (0, 1)
    assert steered("--layers", "-1", "0") == (0, 1)
    assert steered("--behaviour-layers", "final_norm", "1") == (1, "final_norm")
    with pytest.raises(ValueError, match="name blocks by --behaviour-layers"):
        steered("--layers", "final_norm")


def test_a_tuned_model_with_other_tokens_is_refused(pair, tmp_path, capsys):
    from transformers import AutoProcessor

    shutil.copytree(pair / "tuned", pair / "retokenised")
    processor = AutoProcessor.from_pretrained(pair / "original")
    processor.tokenizer.add_tokens(["squarecircle"])
    processor.save_pretrained(pair / "retokenised")
    assert compare(pair, tmp_path, "--layers", "0", *SMALL, "--no-behaviour", tuned="retokenised") == 2
    assert "another tokenizer" in capsys.readouterr().err


def test_an_adapter_over_another_model_is_not_put_on_the_original(pair, tmp_path):
    from hacl.compare.comparison import Comparison, ComparisonSettings

    folder = pair / "stranger"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    def sources(base):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        paths = [str(pair / name) for name in ("original", "stranger", "records.jsonl")]
        return Comparison(ComparisonSettings(*paths, str(pair), str(tmp_path)))

    assert sources(str(pair / "tuned")).sources[1].base == str(pair / "tuned")
    assert not sources(str(pair / "tuned")).one_load
    for moved in (str(pair / "original"), str(pair / "gone")):
        assert sources(moved).one_load


def test_steerers_that_were_fitted_load_for_the_original_and_no_other_model(pair, report):
    from hacl.steering import ArtefactError, load_steerer

    names = {path.name for path in (report / "steerers").iterdir()}
    assert {"global", "concept_soft", "lowrank", "global_sequential"} <= names
    steerer = load_steerer(report / "steerers/global", model=pair / "original")
    assert set(steerer.layers) == {0, 1}
    with pytest.raises(ArtefactError, match="was made for"):
        load_steerer(report / "steerers/global", model=pair / "tuned")


def test_the_steps_one_by_one_give_the_figures_of_the_whole(pair, report, tmp_path, capsys):
    data = ["--records", str(pair / "records.jsonl"), "--image-root", str(pair), *PROMPT]
    for name in ("original", "tuned"):
        assert (
            main(["capture", "--model", str(pair / name), *data, "--layers", "0", "--out", str(tmp_path / name)]) == 0
        )
    stores = ["--original", str(tmp_path / "original"), "--tuned", str(tmp_path / "tuned"), "--layer", "0"]
    assert main(["recover", *stores, *SMALL, "--out", str(tmp_path / "layer")]) == 0
    whole = read(report / "layers/layer_0.mean_generated/analysis.json")
    alone = read(tmp_path / "layer/analysis.json")
    assert alone["recovery"]["headline"] == whole["recovery"]["headline"]
    assert main(["vectors", *stores, *SMALL[:2], "--out", str(tmp_path / "vectors")]) == 0
    features = ["--features", str(tmp_path / "original"), "--layer", "0"]
    assert main(["concepts", *features, *SMALL[:4], "--out", str(tmp_path / "concepts")]) == 0
    capsys.readouterr()
    paths = [tmp_path / "original", tmp_path / "vectors", tmp_path / "concepts", report / "steerers/global"]
    assert main(["inspect", *map(str, paths)]) == 0
    said = capsys.readouterr().out
    for text in ("feature store, complete, 24 rows", "shift vectors", "kmeans, 3 concepts", "steering artefact"):
        assert text in said


def test_an_adapter_is_compared_with_its_base_from_one_load(pair, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(pair / "original")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(pair / "adapter")
    loads = []
    load = ModelSource.load
    monkeypatch.setattr(ModelSource, "load", lambda self, **options: loads.append(self.kind) or load(self, **options))
    assert compare(pair, tmp_path, "--layers", "0", *SMALL, "--no-behaviour", tuned="adapter") == 0
    assert loads == ["folder"]
    found = read(tmp_path / "layers/layer_0.mean_generated/analysis.json")
    assert found["shifts"]["overall"]["magnitude"] > 1e-4


def test_a_style_is_steered_towards_and_its_targetedness_reported(pair, tmp_path, capsys):
    rows = [json.loads(line) for line in (pair / "records.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row["captions"] = ["a square on the left"]
    (pair / "styles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--records", str(pair / "styles.jsonl"), "--image-root", str(pair), *PROMPT, "--max-new-tokens", "5"]
    chosen = ["--model", str(pair / "original"), "--layer", "0", "-k", "2", "--alphas", "1"]
    assert main(["difference", *chosen, *data, "--style", "colour", "--out", str(tmp_path)]) == 0
    assert {row["steerer"] for row in read(tmp_path / "difference.json")["rows"]} >= {"coarse", "fine_source", "random"}
    assert "target share" in capsys.readouterr().out
    assert main(["difference", *chosen, *data, "--style", "loud", "--out", str(tmp_path)]) == 2
    assert "style 'loud'" in capsys.readouterr().err


def test_drift_follows_checkpoints_from_the_first(pair, tmp_path, capsys):
    names = ["--checkpoint", f"start={pair / 'original'}", "--checkpoint", f"end={pair / 'tuned'}"]
    data = ["--records", str(pair / "records.jsonl"), "--image-root", str(pair), "--prompt", "describe the picture"]
    more = ["--layer", "0", "-k", "3", "--words", "neutral", "--device", "cpu", "--quiet", "--template", "chat"]
    assert main(["drift", *names, *data, *more, "--out", str(tmp_path)]) == 0
    first, last = read(tmp_path / "drift.json")["checkpoints"]
    assert first["cosine"] == pytest.approx(1) and first["relative_magnitude"] == 0 < last["relative_magnitude"]
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "Drift over checkpoints" in (tmp_path / "report.html").read_text()
    features = [f"--checkpoint={name}={tmp_path / 'features' / name}" for name in ("start", "end")]
    said = {}
    for words in ("neutral", "none"):
        out = tmp_path / words
        assert main(["drift", *features, "--layer", "0", "-k", "3", "--words", words, "--out", str(out)]) == 0
        said[words] = [row.get("words") for row in read(out / "drift.json")["concepts"]]
    assert any(said["neutral"]) and not any(said["none"])


def test_checkpoints_have_names_of_their_own_and_paths_may_hold_an_equals_sign(tmp_path, capsys):
    from hacl.compare.command import _checkpoint

    folder = tmp_path / "lr=1" / "model"
    folder.mkdir(parents=True)
    assert _checkpoint(str(folder)) == ("model", str(folder))
    assert _checkpoint(f"late={folder}") == ("late", str(folder))
    more = ["--layer", "0", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["drift", "--checkpoint", "a/model", "--checkpoint", "b/model", *more]) == 2
    assert "not distinct names; give NAME=PATH" in capsys.readouterr().err
    assert main(["drift", "--checkpoint", "../x=a", "--checkpoint", "b", *more]) == 2
    assert "no name for a folder" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(pair, tmp_path, capsys):
    assert compare(pair, tmp_path / "none", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "24 of 24 images" in said and "fitted on 12 samples" in said and "0, 1, final_norm of 2 blocks" in said
    assert not (tmp_path / "none").exists()


def test_a_file_gives_options_that_the_command_line_overrules(pair, tmp_path, capsys):
    config = tmp_path / "compare.yaml"
    given = {"original": str(pair / "original"), "tuned": str(pair / "tuned"), "records": str(pair / "records.jsonl")}
    given |= {"image_root": str(pair), "out": str(tmp_path / "out"), "layers": [0, "final_norm"], "limit": 20}
    config.write_text(yaml.safe_dump(given))
    assert main(["--config", str(config), "--limit", "16", "--dry-run", *PROMPT]) == 0
    said = capsys.readouterr().out
    assert "16 of 16 images" in said and "layers     0, final_norm of" in said
    config.write_text(yaml.safe_dump(given | {"concept": 3}))
    with pytest.raises(SystemExit):
        main(["--config", str(config), "--dry-run"])
    assert "did you mean 'concepts'?" in capsys.readouterr().err


def test_a_file_gives_lists_as_lists_and_is_told_what_a_value_should_be(tmp_path, capsys):
    from hacl.compare.arguments import parse

    config = tmp_path / "options.yaml"

    def parsed(command, **content):
        config.write_text(yaml.safe_dump({"out": "o", "layer": 1, **content}))
        return parse([command, "--config", str(config)])

    data = {"model": "m", "records": "r", "image_root": "i"}
    assert parsed("difference", **data, answer=["yes", 3], prompt=None).answer == ["yes", "3"]
    assert parsed("drift", checkpoint=["a=x", "y"], quiet=True).checkpoint == ["a=x", "y"]
    for wrong, message in [
        ({"answer": [True, "no"]}, "quote yes and no"),
        ({"answer": ["yes"]}, "expected 2 values"),
        ({"answer": ["a", "b"], "limit": "many"}, "limit='many'; expected int"),
        ({"answer": ["a", "b"], "quiet": "no"}, "expected true or false"),
        ({"answer": ["a", "b"], "limit": [1, 2]}, "expected one text or number"),
    ]:
        with pytest.raises(SystemExit):
            parsed("difference", **data, **wrong)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--layers", "7"], "layer 7: expected 0 to 1"),
        (["--pope-images", "3"], "name them with --vocabulary"),
        (["--styles", "loud"], "--styles loud: one of"),
        (["--vocabulary", "nouns"], "neither coco nor pocket nor a file"),
        (["--limit", "6", "--no-behaviour", "-k", "4"], "use fewer concepts"),
        (["--limit", "5"], "too few to fit, choose and confirm"),
        (["--select", "word"], "selector 'word'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(pair, tmp_path, capsys, arguments, message):
    small = [] if "-k" in arguments else ["-k", "2"]
    assert compare(pair, tmp_path, *arguments, *small, *BEHAVIOUR, "--bootstrap", "5", "--controls", "2") == 2
    assert message in capsys.readouterr().err
