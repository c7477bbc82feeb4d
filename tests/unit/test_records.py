"""Promises of the record schema: what is accepted, what is refused and how, and that writing loses nothing."""

import json

import pytest

from hacl.data.convert import convert, detect, split_by_image
from hacl.data.records import (
    HallucinatedCaption,
    Record,
    RecordError,
    Turn,
    iter_raw,
    iter_records,
    parse_record,
    read_records,
    record_to_json,
    write_records,
)

OURS = {
    "id": "139",
    "image": "images/139.jpg",
    "image_id": "139",
    "captions": ["a woman at a table", "a room"],
    "hallucinated": [{"text": "a dog at a table", "type": "object", "span": [2, 5], "source": "lexical", "of": 0}],
    "objects": {"person": 1, "dining table": 1},
    "conversations": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A room."}],
    "license": "CC BY",
}
UPSTREAM = {
    "id": 7,
    "image": "a/b.jpg",
    "text": "two men on a bench",
    "Hallucination caption": "two women on a bench",
    "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "two men on a bench"}],
}


def test_a_record_survives_writing_and_reading():
    record = parse_record(OURS, where="f:1")
    assert record_to_json(record) == OURS
    assert parse_record(record_to_json(record), where="f:1") == record
    assert record.extra == {"license": "CC BY"}
    assert record.hallucinated[0].span == (2, 5)


def test_a_released_hacl_record_is_read_as_it_stands():
    record = parse_record(UPSTREAM, where="f:1")
    assert record.id == "7"
    assert record.captions == ("two men on a bench",)
    assert record.hallucinated == (HallucinatedCaption("two women on a bench", of=0),)
    assert record.conversation == (Turn("user", "<image>"), Turn("assistant", "two men on a bench"))


def test_a_hallucinated_caption_without_a_caption_takes_the_first_answer_as_caption():
    record = parse_record({k: v for k, v in UPSTREAM.items() if k != "text"}, where="f:1")
    assert record.captions == ("two men on a bench",)


def test_an_answer_alone_is_no_caption():
    record = parse_record({"id": "1", "conversations": UPSTREAM["conversations"], "image": "a.jpg"}, where="f:1")
    assert record.captions == ()


def test_several_upstream_hallucinated_captions_may_be_a_list():
    record = parse_record({**UPSTREAM, "Hallucination caption": ["a", "b"]}, where="f:1")
    assert [caption.text for caption in record.hallucinated] == ["a", "b"]


@pytest.mark.parametrize("key", ["captions", "caption", "text"])
@pytest.mark.parametrize("value", ["a dog", ["a dog"]])
def test_captions_may_be_called_and_shaped_as_elsewhere(key, value):
    assert parse_record({key: value}, where="f:1").captions == ("a dog",)


def test_a_missing_image_id_is_the_same_for_all_spellings_of_one_path():
    ids = {
        parse_record({"image": path, "text": "x"}, where="f").image_id for path in ("a/b.jpg", "./a//b.jpg", "a\\b.jpg")
    }
    assert len(ids) == 1
    assert parse_record({"image": "a/c.jpg", "text": "x"}, where="f").image_id not in ids


def test_a_missing_id_does_not_depend_on_the_position_in_the_file():
    first, second = (parse_record({"image": "a.jpg", "text": "x"}, where=f"f:{line}") for line in (1, 9))
    assert first.id == second.id
    assert parse_record({"image": "a.jpg", "text": "y"}, where="f").id != first.id


def test_text_only_and_many_images_are_records_too():
    text_only = parse_record({"conversations": [{"from": "human", "value": "hi"}]}, where="f")
    assert text_only.images == ()
    assert parse_record({"image": ["a.jpg", "b.jpg"], "text": "x"}, where="f").images == ("a.jpg", "b.jpg")


@pytest.mark.parametrize("value", ["a.jpg", ["a.jpg"], ["a.jpg", "b.jpg"]])
def test_images_are_read_from_either_key_and_written_back_under_one(value):
    record = parse_record({"images": value, "text": "x"}, where="f")
    assert record == parse_record({"image": value, "text": "x"}, where="f")
    assert record.images == ((value,) if isinstance(value, str) else tuple(value))
    assert "images" not in record_to_json(record)
    assert parse_record({"image": value, "images": value, "text": "x"}, where="f") == record
    assert parse_record({"image": None, "images": value, "text": "x"}, where="f") == record


def test_two_keys_that_name_different_images_are_refused():
    with pytest.raises(RecordError, match="key 'images': names other images than `image`; keep one"):
        parse_record({"image": "a.jpg", "images": ["b.jpg"], "text": "x"}, where="f")


def test_objects_may_be_a_list_in_which_each_occurrence_counts():
    record = parse_record({"text": "x", "objects": ["dog", "cat", "dog"]}, where="f")
    assert record.objects == {"dog": 2, "cat": 1}
    assert parse_record({"text": "x", "objects": []}, where="f").objects == {}


def test_no_annotation_and_no_objects_are_different_things():
    assert parse_record({"text": "x"}, where="f").objects is None
    assert parse_record({"text": "x", "objects": None}, where="f").objects is None
    assert parse_record({"text": "x", "objects": {}}, where="f").objects == {}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"captions": []}, None),
        ({"captions": ["a", " "]}, "captions[1]"),
        ({"captions": 5}, "captions"),
        ({"captions": [None]}, "captions[0]"),
        ({"id": True}, "id"),
        ({"id": ["x"]}, "id"),
        ({"image": 3}, "image"),
        ({"image": ""}, "image"),
        ({"images": 3}, "images"),
        ({"images": ["a.jpg", ""]}, "images"),
        ({"objects": "dog"}, "objects"),
        ({"objects": ["dog", 3]}, "objects[1]"),
        ({"objects": {"dog": 0}}, "objects.dog"),
        ({"objects": {"dog": True}}, "objects.dog"),
        ({"objects": {"dog": 1.5}}, "objects.dog"),
        ({"hallucinated": {"text": "x"}}, "hallucinated"),
        ({"hallucinated": [{"type": "object"}]}, "hallucinated[0].text"),
        ({"hallucinated": [{"text": "x", "type": "objekt"}]}, "hallucinated[0].type"),
        ({"hallucinated": [{"text": "x", "type": ["object"]}]}, "hallucinated[0].type"),
        ({"hallucinated": [{"text": "x", "span": [0, 2]}]}, "hallucinated[0].span"),
        ({"hallucinated": [{"text": "x", "span": [1, 0]}]}, "hallucinated[0].span"),
        ({"hallucinated": [{"text": "x", "of": 2}]}, "hallucinated[0].of"),
        ({"hallucinated": [{"text": "x", "of": True}]}, "hallucinated[0].of"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "conversations[0]"),
        ({"conversations": [{"from": "human", "value": ["x"]}]}, "conversations[0]"),
        ({"conversations": "hi"}, "conversations"),
        ({"conversations": [{"from": "gpt", "value": "a dog"}]}, "conversations[0]"),
        ({"captions": ["\ud800"]}, "captions[0]"),
    ],
)
def test_a_bad_value_is_refused_with_place_record_and_key(change, key):
    raw = {**OURS, **change} if key else {"id": "139", **change}
    with pytest.raises(RecordError) as refused:
        parse_record(raw, where="train.jsonl:4")
    message = str(refused.value)
    assert message.startswith("train.jsonl:4:")
    assert key is None or f"key {key!r}" in message
    assert "139" in message or key == "id"


def test_a_misspelt_type_is_answered_with_the_right_one():
    with pytest.raises(RecordError, match="did you mean 'object'"):
        parse_record({**OURS, "hallucinated": [{"text": "x", "type": "objekt"}]}, where="f")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_both_file_forms_give_the_same_records(tmp_path, name):
    records = [parse_record(raw, where="f") for raw in (OURS, UPSTREAM)]
    assert write_records(tmp_path / name, records) == 2
    assert read_records(tmp_path / name) == records
    assert read_records(tmp_path / name, limit=1) == records[:1]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_empty_list_is_a_file_of_no_records(tmp_path):
    for name in ("x.json", "x.jsonl"):
        assert write_records(tmp_path / name, []) == 0
        assert read_records(tmp_path / name) == []


def test_jsonl_is_streamed_so_a_bad_line_does_not_hide_those_before_it(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(OURS) + "\n\n{broken\n", encoding="utf-8")
    found = iter_records(path)
    assert next(found).id == "139"
    with pytest.raises(RecordError, match=r"x\.jsonl:3"):
        next(found)


def test_bad_lines_can_be_collected_instead(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"text": "b"}\n')
    errors = []
    assert [raw["text"] for _, raw in iter_raw(path, errors.append)] == ["a", "b"]
    assert len(errors) == 2


def test_a_missing_file_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="jsonl"):
        read_records(tmp_path / "none.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_records(path, [Record("1", captions=("a",))])

    def broken():
        yield Record("2", captions=("b",))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert [record.id for record in read_records(path)] == ["1"]
    assert len(list(tmp_path.iterdir())) == 1


def write_json(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def llava(name, answers=1, image="a.jpg"):
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "a dog"}] * answers
    return {"id": name, "image": image, "conversations": turns}


def test_answers_are_captions_only_in_a_file_of_single_answers(tmp_path):
    captions = convert(write_json(tmp_path / "a.json", [llava("1"), llava("1")]))
    assert [record.captions for record in captions] == [("a dog",), ("a dog",)]
    assert [record.id for record in captions] == ["1", "1#2"]
    instructions = convert(write_json(tmp_path / "b.json", [llava("1"), llava("2", answers=2)]))
    assert [record.captions for record in instructions] == [(), ()]


def test_the_form_of_a_file_is_told_from_a_record():
    assert detect(UPSTREAM) == "hacl"
    assert detect(llava("1")) == "llava"
    assert detect({"file_name": "x", "captions": []}) == "coco-mini"


def test_a_split_never_separates_records_of_one_image():
    records = [Record(str(n), image_id=str(n // 2), captions=("x",)) for n in range(40)]
    parts = split_by_image(records, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    images = [{record.image_id for record in part} for part in parts.values()]
    assert [len(part) for part in images] == [16, 2, 2]
    assert sum(len(part) for part in parts.values()) == 40
    assert not images[0] & images[1] and not images[0] & images[2]
    again = split_by_image(records[::-1], {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    assert [{record.image_id for record in part} for part in again.values()] == images


def test_shares_must_add_up():
    with pytest.raises(ValueError, match="add up"):
        split_by_image([], {"train": 0.8, "val": 0.1}, seed=0)
