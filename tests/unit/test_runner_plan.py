"""Promises of reading benchmarks: upstream layouts, images found beforehand, errors that name question and file."""

import json

import pytest
from PIL import Image

from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.hub import fetch
from hacl.evaluation.runner.images import COCO_LIST, chair_plan, coco_list
from hacl.evaluation.runner.pairs import SugarCrepe
from hacl.evaluation.runner.places import locate, named_values
from hacl.evaluation.runner.plan import distinct, item_request, only_some
from hacl.evaluation.runner.prompts import DEFAULT, PROMPTS, find_prompt
from hacl.evaluation.runner.questions import amber_plan, mm_safety_plan, mme_plan, mmhal_plan, pope_plan
from hacl.evaluation.runner.results import without_cut_sentence


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path)


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def place(folder, benchmark, **options):
    return locate(benchmark, str(folder), options.get("own"), options.get("images"))


@pytest.fixture
def pope(tmp_path):
    picture(tmp_path / "images" / "a.png")
    shared = {"question_id": 2, "image": "a.png", "text": "is there a cross ?", "label": "no"}
    yes = {"question_id": 1, "image": "a.png", "text": "is there a square ?", "label": "yes"}
    for split in ("popular", "adversarial"):
        lines(tmp_path / "pope" / f"coco_pope_{split}.json", yes, shared)
    lines(tmp_path / "pope" / "coco_pope_random.json", yes, shared | {"text": "is there a circle ?"})
    return tmp_path


def test_pope_has_one_part_per_split_and_shared_questions_are_asked_once(pope):
    plan = pope_plan(place(pope, "pope"))
    assert [part.name for part in plan.parts] == ["random", "popular", "adversarial"]
    requests = distinct(item_request(item, item.question, 16) for item in plan.items())
    assert len(plan.items()) == 6 and len(requests) == 3
    assert plan.parts[0].items[0].fields == {"question_id": 1, "image_id": "a.png"}


def test_a_missing_image_names_question_and_file(pope):
    (pope / "images" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"coco_pope_adversarial.json:1, question_id 1: image 'a.png'"):
        pope_plan(place(pope, "pope"))


def test_an_image_name_cannot_leave_the_image_root(pope):
    path = lines(pope / "q.jsonl", {"question_id": 1, "image": "../x.png", "text": "?", "label": "no"})
    with pytest.raises(ValueError, match=r"q.jsonl:1, question_id 1: .*climbs out"):
        pope_plan(place(pope, "pope", own=str(path)))


def test_a_repeated_question_is_refused(pope):
    row = {"question_id": 1, "image": "images/a.png", "text": "?", "label": "no"}
    path = lines(pope / "q.jsonl", row, row)
    with pytest.raises(ValueError, match=r"q.jsonl:2, .*already used at .*q.jsonl:1"):
        pope_plan(place(pope, "pope", own=str(path)))


def test_chair_captions_each_image_of_a_records_file_once(tmp_path):
    picture(tmp_path / "images" / "a.png")
    row = {"image": "images/a.png", "image_id": "7", "objects": {"cup": 1}, "captions": ["a cup"]}
    lines(tmp_path / "chair" / "records.jsonl", row, row)
    (tmp_path / "chair" / "vocabulary.json").write_text('{"cup": "cup"}')
    (part,) = chair_plan(place(tmp_path, "chair")).parts
    assert [item.fields for item in part.items] == [{"image_id": "7"}] and part.scorer == "chair_words"


def test_a_coco_folder_is_captioned_by_a_list_that_only_its_name_and_the_ids_decide(tmp_path):
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (9, 4, 6)]
    (tmp_path / "chair" / "annotations").mkdir(parents=True)
    (tmp_path / "chair" / "annotations" / "instances_val2014.json").write_text(json.dumps({"images": images}))
    for image in images:
        picture(tmp_path / "chair" / "images" / "val2014" / image["file_name"])
    plan = chair_plan(place(tmp_path, "chair"))
    assert plan.meta["image_list"] == COCO_LIST and [item.fields["image_id"] for item in plan.items()] == [4, 6, 9]
    assert plan.parts[0].references.name == "annotations"
    assert coco_list(list(range(2000))) == coco_list(list(range(1999, -1, -1)))
    assert coco_list(list(range(2000)))[:3] == [3, 4, 8]


def test_amber_gives_descriptions_more_tokens_than_yes_or_no(tmp_path):
    picture(tmp_path / "amber" / "images" / "AMBER_1.jpg")
    queries = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 1005, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"},
    ]
    (tmp_path / "amber" / "query").mkdir()
    (tmp_path / "amber" / "query" / "query_all.json").write_text(json.dumps(queries))
    with pytest.raises(FileNotFoundError, match="annotations.json"):
        amber_plan(place(tmp_path, "amber"))
    (tmp_path / "amber" / "annotations.json").write_text("[]")
    items = amber_plan(place(tmp_path, "amber")).items()
    assert [item.max_new_tokens for item in items] == [512, 16] and items[1].fields["id"] == 1005


def test_mme_is_read_from_tables_and_from_the_layout_of_its_release(tmp_path):
    picture(tmp_path / "mme" / "images" / "1.jpg")
    table = "1.jpg\tIs there a cat?\tYes\n1.jpg\tIs there a dog?\tNo\n"
    (tmp_path / "mme" / "existence.txt").write_text(table)
    folder = tmp_path / "mme" / "count"
    picture(folder / "2.png")
    (folder / "2.txt").write_text("Are there two?\tYes\nAre there three?\tNo\n")
    items = mme_plan(place(tmp_path, "mme")).items()
    assert [item.fields["category"] for item in items] == ["existence"] * 2 + ["count"] * 2
    assert items[2].fields["question_id"] == "2.png" and items[2].image.name == "2.png"
    (tmp_path / "mme" / "existence.txt").write_text("1.jpg\tIs there a cat?\tperhaps\n")
    with pytest.raises(ValueError, match=r"existence.txt:1: the answer is 'perhaps'"):
        mme_plan(place(tmp_path, "mme"))


def test_judged_benchmarks_keep_their_rows_for_the_judge(tmp_path):
    picture(tmp_path / "images" / "1.png")
    row = {"question": "what ?", "image_src": "https://x.org/1.png", "gt_answer": "a", "model_answer": ""}
    path = lines(tmp_path / "mmhal.jsonl", row)
    (item,) = mmhal_plan(place(tmp_path, "mmhal")).items()
    assert item.reply == "model_answer" and item.fields["gt_answer"] == "a" and path.exists()
    lines(tmp_path / "mm_safety.jsonl", {"id": "a", "scenario": "s", "question": "how ?", "image": "1.png"})
    (part,) = mm_safety_plan(place(tmp_path, "mm_safety")).parts
    assert part.scorer is None and part.items[0].fields["scenario"] == "s"


def test_sugarcrepe_asks_both_texts_with_the_image_and_without(tmp_path):
    picture(tmp_path / "sugarcrepe" / "images" / "1.jpg")
    row = {"filename": "1.jpg", "caption": "a cat", "negative_caption": "a dog"}
    (tmp_path / "sugarcrepe" / "add_obj.json").write_text(json.dumps({"0": row}))
    paired = SugarCrepe(place(tmp_path, "sugarcrepe"))
    requests = paired.requests("describe")
    assert len({request.key for request in requests}) == 4
    totals = {"a cat": (-2.0, -6.0), "a dog": (-3.0, -8.0)}
    answers = {r.key: {"total": totals[r.text][r.image is None], "tokens": 2} for r in requests}
    (row,) = paired.predictions("describe", answers, "relative")
    assert (row["pos_score"], row["neg_score"]) == (4.0, 5.0) and row["index"] == 0
    (row,) = paired.predictions("describe", answers, "mean")
    assert (row["pos_score"], row["neg_score"]) == (-1.0, -1.5)


def test_every_benchmark_has_a_wording_and_words_may_be_given(tmp_path):
    assert set(DEFAULT.values()) <= set(PROMPTS)
    assert find_prompt("pope", "question/word").render("is it ?").startswith("is it ?\nAnswer")
    assert find_prompt("chair", "text:look {x}").render("") == "look {x}"
    assert find_prompt("chair", "trained", "what is it ?").text == "what is it ?"
    assert find_prompt("pope", "question/faithful").render("Is it ?").startswith("Is it ? Answer only from what you")
    assert "only what you can see" in find_prompt("chair", "describe/faithful").render("")
    with pytest.raises(ValueError, match="did you mean 'describe/detail'"):
        find_prompt("chair", "describe/detial")
    with pytest.raises(ValueError, match="asks questions"):
        find_prompt("pope", "describe/detail")
    with pytest.raises(ValueError, match="does not say"):
        find_prompt("chair", "trained")


def test_flags_for_all_and_for_one_benchmark_are_told_apart():
    assert named_values(["data", "pope=x=y"], ("pope",), "--data") == ("data", {"pope": "x=y"})
    assert named_values(["a=b/data"], ("pope",), "--data") == ("a=b/data", {})
    with pytest.raises(ValueError, match="given twice"):
        named_values(["pope=a", "pope=b"], ("pope",), "--data")
    with pytest.raises(FileNotFoundError, match="give --data"):
        locate("pope", None, None, None)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0.5}, {"temperature": 1, "num_beams": 2}, {"min_new_tokens": 9}, {"top_k": 3}],
)
def test_decoding_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError):
        Decoding(max_new_tokens=8, **wrong)


def test_a_cut_caption_loses_its_unfinished_sentence_only():
    assert without_cut_sentence('A cat sits. It is "big." And a do') == 'A cat sits. It is "big."'
    assert without_cut_sentence("A cat on a 3.5 m") == "A cat on a 3.5 m"


def test_hub_data_become_local_files_once(tmp_path):
    image = Image.new("RGB", (8, 8))
    row = {"question_id": "1", "question": "is it ?", "answer": "no", "image_source": "COCO_1", "image": image}
    loaded = []

    def load(name):
        loaded.append(name)
        return [row | {"category": split} for split in ("random", "popular")]

    for _ in range(2):
        folder = fetch("pope", "hub:lmms-lab/POPE", tmp_path, load)
    plan = pope_plan(locate("pope", None, str(folder), None))
    assert loaded == ["lmms-lab/POPE"] and [part.name for part in plan.parts] == ["random", "popular"]
    rows = [{"question_id": "color/0.png", "question": "is it ?", "answer": a, "image": image} for a in ("Yes", "No")]
    folder = fetch("mme", "hub:lmms-lab/MME", tmp_path, lambda name: [row | {"category": "color"} for row in rows])
    items = mme_plan(locate("mme", None, str(folder), None)).items()
    assert [item.fields["category"] for item in items] == ["color", "color"]
    with pytest.raises(ValueError, match="climbs out"):
        fetch("pope", "hub:a/c", tmp_path, lambda name: [row | {"image_source": "../../x"}])
    with pytest.raises(ValueError, match="no column 'question_id'"):
        fetch("pope", "hub:a/b", tmp_path, lambda name: [{"image": image, "image_source": "x"}])
    with pytest.raises(ValueError, match="from the Hub there are pope, mme"):
        fetch("amber", "hub:a/b", tmp_path, load)


def test_a_list_of_ids_that_cannot_be_read_is_named(pope, tmp_path):
    row = {"question_id": 1, "image": "images/a.png", "text": "?", "label": "no"}
    plan = pope_plan(place(pope, "pope", own=str(lines(pope / "q.jsonl", row))))
    chosen = tmp_path / "ids.json"
    cases = (("[1", "ids.json: no JSON"), ('{"train": [1]}', "an object with such a list under 'test'"))
    for content, message in cases:
        chosen.write_text(content)
        with pytest.raises(ValueError, match=message):
            only_some(plan, str(chosen))
