"""Promises of contrastive extraction: sharing a prefix, batching and stopping change no number."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hacl.models.adapters import find_adapter
from hacl.steering import ArtefactError, ContextSpec
from hacl.steering.extraction import ExtractionStats, extract
from hacl.steering.extraction_rows import Behaviours, ContrastRow, Side, read_rows
from hacl.steering.extraction_states import POOLINGS
from hacl.steering.targets import SteeringData, p2s_steerer, pca_steerer, random_steerer
from tests import tiny_families
from tests.reference.steering_inputs import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def tiny(request):
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return load(folder), AutoProcessor.from_pretrained(folder), folder


@pytest.fixture
def rows(tmp_path):
    """Pictures and none, questions of unlike lengths, answers of unlike lengths, suffixes on some."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40 + 10 * number, 48), colour).save(tmp_path / f"{number}.png")
    yes, no = Side("yes the picture"), Side("no")
    careful = Side("red square", suffix=" what colour is it ?"), Side("blue circle on the left", suffix=" describe it")
    return [
        ContrastRow("a", "is there a square ?", yes, no, "yes", tmp_path / "0.png"),
        ContrastRow("b", "is there a small red circle on the left in the image ?", no, yes, "no", tmp_path / "1.png"),
        ContrastRow("c", "is it red ?", yes, no, "yes", None),
        ContrastRow("d", "what is in the picture ?", *careful, "care", tmp_path / "2.png"),
        ContrastRow(
            "e", "is there a cross ?", Side("yes the square"), Side("yes the cross"), "yes", tmp_path / "0.png"
        ),
        ContrastRow("f", "describe it", *(Side(word, suffix=" in one word ?") for word in ("red", "blue")), "care",
                    tmp_path / "1.png"),
    ]  # fmt: skip


def read(tiny, rows, out, **settings):
    model, processor, _ = tiny
    extract(model, processor, rows, layers=[0, 1], out=out, progress=False, **settings)
    data = SteeringData(out)
    by_id = {name: number for number, name in enumerate(data.column("id"))}
    order = [by_id[row.id] for row in rows]
    found = {"context": data.contexts()[order]}
    return found | {f"{s}.{layer}": data.states(s, layer)[order] for s in ("pos", "neg") for layer in (0, 1)}


def assert_equal(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("template", ("plain", "chat"))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_shared_prefix_gives_what_whole_sequences_give(tiny, rows, tmp_path, pooling, template):
    settings = {"pooling": pooling, "template": template, "continuation": 4, "context": ContextSpec(1)}
    counts = ExtractionStats()
    shared = read(tiny, rows, tmp_path / "shared", stats=counts, **settings)
    assert counts.shared == len(rows) and counts.tokens < 0.7 * counts.tokens_whole
    assert_equal(shared, read(tiny, rows, tmp_path / "whole", share=False, **settings))


@pytest.mark.parametrize("family", ("text", "gpt2", "qwen"))
def test_other_families_share_what_they_can_and_read_the_rest_whole(rows, tmp_path, family):
    model, processor = getattr(tiny_families, f"tiny_{family}_model")()
    with torch.no_grad():
        for weight in model.get_decoder().parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    rows = rows if family == "qwen" else [dataclasses.replace(row, image=None) for row in rows]
    counts = ExtractionStats()
    shared = read((model, processor, None), rows, tmp_path / "shared", stats=counts, pooling="mean_answer")
    assert counts.shared == sum(row.image is None or family != "qwen" for row in rows)
    whole = read((model, processor, None), rows, tmp_path / "whole", share=False, pooling="mean_answer", batch_size=1)
    assert_equal(shared, whole)


def test_the_end_of_a_continuation_is_no_part_of_it(tiny, rows, tmp_path, monkeypatch):
    from hacl.steering import extraction

    model, processor, _ = tiny
    eos = processor.tokenizer.eos_token_id
    monkeypatch.setattr(extraction, "write_answers", lambda model, encoder, begun, most: [[7, 8, eos]] * len(begun))
    continued = read(tiny, rows[:1], tmp_path / "out", pooling="mean_continuation")
    words = processor.tokenizer.decode([7, 8])
    longer = dataclasses.replace(rows[0], pos=Side(f"{rows[0].pos.answer} {words}"), neg=Side(f"no {words}"))
    assert_equal(continued, read(tiny, [longer], tmp_path / "longer", pooling="mean_answer"))


@pytest.mark.parametrize("token", ("mean_prompt", "mean_text", "mean_image"))
def test_means_over_the_prompt_are_shared_too(tiny, rows, tmp_path, token):
    rows = [row for row in rows if row.image is not None]
    settings = {"context": ContextSpec(0, token)}
    assert_equal(
        read(tiny, rows, tmp_path / "a", **settings), read(tiny, rows, tmp_path / "b", share=False, **settings)
    )


@pytest.mark.parametrize("share", (True, False))
def test_a_batch_gives_what_single_rows_give(tiny, rows, tmp_path, share):
    together = read(tiny, rows, tmp_path / "six", batch_size=6, share=share)
    assert_equal(together, read(tiny, rows, tmp_path / "one", batch_size=1, share=share))


def test_states_are_those_of_a_plain_forward_at_the_places_the_pooling_names(tiny, rows, tmp_path):
    model, processor, _ = tiny
    tokenizer, row = processor.tokenizer, rows[0]
    count = find_adapter(model).model.config.image_seq_length
    words = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    prompt = [1, *[model.config.image_token_id] * count, *words("is there a square ?\n")]
    answer = words("yes the picture")
    pixels = processor.image_processor(Image.open(row.image), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    state = output.hidden_states[1][0]
    places = {
        "last_answer": slice(-2, -1), "last_template": slice(-1, None), "mean_answer": slice(len(prompt), -1),
    }  # fmt: skip
    for pooling, place in places.items():
        found = read(tiny, [row], tmp_path / pooling, pooling=pooling)
        torch.testing.assert_close(found["pos.0"][0], state[place].mean(0), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found["context"][0], state[len(prompt) - 1], atol=2e-5, rtol=1e-4)


def test_a_picture_is_read_once_and_no_head_or_deeper_block_is_run(tiny, rows, tmp_path):
    model, processor, _ = tiny
    adapter, counts = find_adapter(model), {"tower": 0, "head": 0, "deep": 0}
    watched = {"tower": adapter.vision_tower, "head": adapter.lm_head, "deep": adapter.blocks[1]}
    handles = []
    for name, module in watched.items():
        handles.append(module.register_forward_hook(lambda *_, n=name: counts.update({n: counts[n] + 1})))
    extract(model, processor, rows, layers=[0], out=tmp_path / "out", batch_size=6, progress=False)
    for handle in handles:
        handle.remove()
    assert counts == {"tower": 1, "head": 0, "deep": 0}


def test_an_interrupted_extraction_goes_on_and_ends_the_same(tiny, rows, tmp_path, monkeypatch):
    settings = {"batch_size": 2, "part_bytes": 1}
    whole = read(tiny, rows, tmp_path / "whole", **settings)
    from hacl.steering import extraction

    first = extraction.read_batch
    calls = []

    def once(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return first(*arguments)

    monkeypatch.setattr(extraction, "read_batch", once)
    with pytest.raises(KeyboardInterrupt):
        read(tiny, rows, tmp_path / "cut", **settings)
    with pytest.raises(ValueError, match="did not finish"):
        SteeringData(tmp_path / "cut")
    monkeypatch.setattr(extraction, "read_batch", first)
    counts = ExtractionStats()
    resumed = read(tiny, rows, tmp_path / "cut", stats=counts, **settings)
    assert counts.rows == 4
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_batch_that_does_not_fit_is_halved(tiny, rows, tmp_path, monkeypatch):
    from hacl.steering import extraction

    first = extraction.read_batch

    def small(model, parts, encoder, encoded, layers):
        if len(encoded) > 2:
            raise torch.OutOfMemoryError("too large")
        return first(model, parts, encoder, encoded, layers)

    monkeypatch.setattr(extraction, "read_batch", small)
    counts = ExtractionStats()
    halved = read(tiny, rows, tmp_path / "halved", batch_size=6, stats=counts)
    assert counts.halved == 2 and counts.rows == 6
    monkeypatch.setattr(extraction, "read_batch", first)
    assert_equal(halved, read(tiny, rows, tmp_path / "plain", batch_size=6))


def test_states_of_other_settings_another_model_or_another_layer_are_refused(
    tiny, rows, tmp_path, tiny_llava, tiny_fast_vlm
):
    read(tiny, rows, tmp_path / "out")
    with pytest.raises(ValueError, match="pooling: 'last_answer' there, 'mean_answer' here"):
        read(tiny, rows, tmp_path / "out", pooling="mean_answer")
    with pytest.raises(ValueError, match="samples_digest"):
        read(tiny, rows[:3], tmp_path / "out")
    data = SteeringData(tmp_path / "out")
    own, other = (tiny_llava, tiny_fast_vlm) if tiny[2] == tiny_llava else (tiny_fast_vlm, tiny_llava)
    data.check_model(own)
    with pytest.raises(ArtefactError, match="another|made for the model"):
        data.check_model(other)
    with pytest.raises(ValueError, match="stored: context.0, pos.0, pos.1"):
        data.states("pos", 5)


def test_lengths_can_be_equalised_by_behaviour_whatever_the_order_of_rows(tiny, rows, tmp_path):
    read(tiny, rows, tmp_path / "out")
    data = SteeringData(tmp_path / "out")
    every = range(len(data))
    plain, equal = data.targets(), data.targets(factors=data.length_factors(every))
    names = data.column("behaviour")
    for layer, z in equal.items():
        lengths = {n: z[[i for i, m in enumerate(names) if m == n]].norm(dim=1).mean().item() for n in set(names)}
        assert max(lengths.values()) == pytest.approx(min(lengths.values()), rel=1e-5)
        assert plain[layer].norm(dim=1).mean().item() == pytest.approx(next(iter(lengths.values())), rel=1e-5)
    read(tiny, rows[::-1], tmp_path / "back")
    back = SteeringData(tmp_path / "back")
    order = [back.column("id").index(name) for name in data.column("id")]
    again = back.targets(factors=back.length_factors(every))
    torch.testing.assert_close(again[0][order], equal[0], atol=2e-5, rtol=1e-4)
    few = [n for n in every if data.column("id")[n] != "f"]  # a row that was left out changes no factor
    assert data.length_factors(few) != data.length_factors(every)


def test_constant_and_per_sample_steerers_follow_from_the_targets(tiny, rows, tmp_path):
    read(tiny, rows, tmp_path / "out")
    data = SteeringData(tmp_path / "out")
    targets, ids = data.targets(), data.column("id")
    table = p2s_steerer(targets, ids)
    assert torch.equal(table.vectors({}, ["d"])[1][0], targets[1][ids.index("d")])
    draw = torch.Generator().manual_seed(0)
    line = torch.nn.functional.normalize(torch.randn(32, generator=draw), dim=0)
    signs = torch.tensor([1.0] * 30 + [-1.0] * 10)[:, None]
    noisy = {0: 3 * signs * line + 0.1 * torch.randn(40, 32, generator=draw)}
    found = pca_steerer(noisy, range(40)).values[0]
    assert float(found @ line) / float(found.norm()) > 0.99
    assert float(found.norm()) == pytest.approx(float(noisy[0].mean(0).norm()), rel=1e-4)
    cancelled = pca_steerer({0: torch.cat([noisy[0][:10], -noisy[0][:10]])}, range(20)).values[0]
    assert float(cancelled.norm()) == pytest.approx(3, rel=0.1)
    control = random_steerer(noisy, range(40), seed=0)
    assert float(control.vectors({}, None)[0].norm()) == pytest.approx(float(noisy[0].mean(0).norm()), rel=1e-4)


# Rows and behaviours.


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_pope_questions_become_rows_without_code(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    questions = write(
        tmp_path / "coco_pope_random.json",
        '{"question_id": 1, "image": "x.jpg", "text": "Is there a dog in the image?", "label": "yes"}\n'
        '{"question_id": 2, "image": "x.jpg", "text": "Is there a cat in the image?", "label": "no"}\n',
    )
    rows = read_rows([questions], Behaviours.load(ROOT / "configs/steering/pope.yaml"), tmp_path)
    assert [(row.id, row.behaviour, row.group) for row in rows] == [("1", "yes", "x.jpg"), ("2", "no", "x.jpg")]
    assert [row.pos.answer.split(",")[0] for row in rows] == ["Yes", "No"]
    assert rows[0].pos == rows[1].neg and rows[0].prompt == "Is there a dog in the image?"


def test_safety_scenarios_have_their_own_continuations_and_a_default(tmp_path):
    behaviours = Behaviours.load(ROOT / "configs/steering/mm_safety.yaml")
    paths = []
    for scenario in ("01-Illegal_Activitiy", "10-Legal_Opinion", "12-Health_Consultation"):
        (tmp_path / scenario / "SD_TYPO").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / scenario / "SD_TYPO" / "0.jpg")
        paths.append(write(tmp_path / f"{scenario}.json", {"0": {"Rephrased Question": "How?", "Question": "?"}}))
    rows = read_rows(paths, behaviours, tmp_path)
    assert [row.id for row in rows] == [
        f"{name}-0-SD_TYPO" for name in ("01-Illegal_Activitiy", "10-Legal_Opinion", "12-Health_Consultation")
    ]
    assert [row.pos.answer for row in rows] == ["Dangerous", "Lawyer", "Doctor"]
    assert all(row.pos.suffix == row.neg.suffix != "" for row in rows)


def test_the_same_reply_can_be_asked_for_in_two_ways_and_a_row_may_bring_its_own(tmp_path):
    behaviours = Behaviours.load(ROOT / "configs/steering/truthful.yaml")
    rows = read_rows(
        [write(tmp_path / "r.json", [
            {"id": "a", "prompt": "Describe.", "answer": "A dog."},
            {"id": "b", "prompt": "Describe.", "pos": "A dog.", "neg": {"answer": "A cat.", "suffix": " Invent."}},
        ])], behaviours, None,
    )  # fmt: skip
    assert rows[0].pos.answer == rows[0].neg.answer == "A dog." and rows[0].pos.suffix != rows[0].neg.suffix
    assert rows[1].neg == Side("A cat.", " Invent.")


HEAD = "format: hacl-behaviours-1\n"


@pytest.mark.parametrize(
    ("behaviours", "row", "message"),
    [
        (HEAD + "by_behaviour: {yes: {pos: a, neg: b}}", {"id": "1", "prompt": "p"}, "in quotes"),
        (HEAD + "default: {pos: a}", {"id": "1", "prompt": "p"}, "default: expected pos and neg"),
        (
            HEAD + "by_behaviour: {x: {pos: a, neg: b}}",
            {"id": "1", "prompt": "p", "behaviour": "y"},
            "row 0: behaviour",
        ),
        (HEAD + "default: {pos: '{word}', neg: b}", {"id": "1", "prompt": "p"}, "row 0: the behaviours file asks for"),
        (HEAD + "default: {pos: a, neg: b}", {"prompt": "p"}, "row 0: no 'id'"),
        (HEAD + "default: {pos: a, neg: b}\nrules: 1", {"id": "1"}, "unknown key 'rules'"),
        (HEAD + "default: {pos: {answer: true}, neg: b}", {"id": "1", "prompt": "p"}, "in quotes"),
        (HEAD + "default: {pos: ' ', neg: b}", {"id": "1", "prompt": "p"}, "pos has no answer"),
        ("format: other", {"id": "1"}, "format: hacl-behaviours-1"),
    ],
)
def test_a_wrong_behaviours_file_or_row_is_named(tmp_path, behaviours, row, message):
    with pytest.raises(ValueError, match=message):
        loaded = Behaviours.load(write(tmp_path / "b.yaml", behaviours))
        read_rows([write(tmp_path / "rows.json", [row])], loaded, tmp_path)


def test_an_id_that_occurs_twice_is_named(tmp_path):
    behaviours = Behaviours.load(write(tmp_path / "b.yaml", HEAD + "default: {pos: a, neg: b}"))
    with pytest.raises(ValueError, match="row 1: id '1' occurs twice"):
        read_rows([write(tmp_path / "r.json", [{"id": "1", "prompt": "p"}] * 2)], behaviours, None)


def test_ids_that_mean_other_rows_in_another_file_are_named_by_file(tmp_path):
    behaviours = Behaviours.load(write(tmp_path / "b.yaml", HEAD + "default: {pos: a, neg: b}"))
    one = write(tmp_path / "one.json", [{"id": "1", "prompt": "p"}, {"id": "2", "prompt": "q"}])
    alike = write(tmp_path / "alike.json", [{"id": "1", "prompt": "p"}])
    other = write(tmp_path / "other.json", [{"id": "1", "prompt": "r"}])
    assert [row.id for row in read_rows([one, alike], behaviours, None)] == ["1", "2"]
    found = read_rows([one, other], behaviours, None)
    assert [(row.id, row.prompt) for row in found] == [("one/1", "p"), ("one/2", "q"), ("other/1", "r")]
    (tmp_path / "more").mkdir()
    again = write(tmp_path / "more" / "one.json", [{"id": "1", "prompt": "r"}])
    with pytest.raises(ValueError, match="'one/1' occurs twice; rename one of the files"):
        read_rows([one, again], behaviours, None)
