"""Promises of the CHAIR scorer: figures from the definition, ground truth from any source, clear errors."""

import json
import random

import pytest

from hacl.evaluation import score
from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.chair import ChairScorer
from hacl.evaluation.scorers.chair_extract import PatternExtractor
from hacl.evaluation.scorers.chair_tagger import guess_tags
from hacl.evaluation.scorers.chair_tokens import Tokenizer
from tests.reference import chair as plain

TRUTH = {"1": ["dog", "person"], "2": ["bus"], "3": []}


def row(image_id, caption):
    return {"image_id": image_id, "caption": caption}


ROWS = [
    row(1, "A dog and a cat, two dogs."),  # 3 mentions, 1 wrong, 1 of 2 objects
    row(2, "Two buses and a bus."),  # 1 mention, right
    row(1, "A man with a toilet seat and a cat."),  # 3 mentions, 2 wrong
    row(3, "Nothing here."),
]


def test_figures_follow_from_the_definition():
    report = score("chair", ROWS, TRUTH, dialect="pattern")
    assert report.metrics["CHAIRs"] == 2 / 4
    assert report.metrics["CHAIRi"] == 3 / 7
    assert report.metrics["Recall"] == 3 / 5
    assert report.metrics["Precision"] == 3 / 6
    assert report.metrics["F1"] == 2 * (3 / 5 * (3 / 6)) / (3 / 6 + 3 / 5)
    assert report.metrics["Len"] == 0.01 * (9 + 6 + 9 + 3) / 4
    assert report.counts["mentions"] == 7 and report.counts["captions_without_object"] == 1
    assert set(report.intervals) == {"CHAIRs", "CHAIRi", "Recall", "Precision", "F1", "Len"}


def test_items_list_every_mention_in_order_with_its_head_word():
    items = score("chair", ROWS, TRUTH, dialect="pattern").items
    assert items[0]["generated"] == ["dog", "cat", "dog"] and items[0]["hallucinated"] == ["cat"]
    assert items[2]["hallucinated_words"] == [["toilet", "toilet"], ["cat", "cat"]]
    assert [item["gt"] for item in items] == [["dog", "person"], ["bus"], ["dog", "person"], []]
    assert items[1]["image_id"] == 2
    json.dumps(items)


def test_two_captions_of_one_image_both_count_and_ids_may_be_text():
    again = score("chair", [row("1", r["caption"]) if r["image_id"] == 1 else r for r in ROWS], TRUTH)
    assert again.metrics == score("chair", ROWS, TRUTH).metrics
    assert list(again.sums.tables()["CHAIRs"]) == ["1", "2", "3"]


def test_shuffled_lines_and_any_line_ending_give_the_same_figures(tmp_path):
    rows = ROWS[::-1]
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(r).encode() for r in rows) + b"\r\n\r\n")
    report = score("chair", path, TRUTH)
    assert report.metrics == score("chair", ROWS, TRUTH).metrics
    assert str(path) in report.meta["inputs"] and report.meta["options"]["dialect"] == "pattern"


def test_references_left_without_a_caption_are_listed_where_that_looks_like_an_accident():
    assert not any("no caption" in warning for warning in score("chair", ROWS, TRUTH).warnings)
    fewer = score("chair", ROWS[:3], TRUTH)
    assert any("1 images of the references have no caption: 3" in warning for warning in fewer.warnings)
    many = TRUTH | {str(image): [] for image in range(10, 30)}
    assert not any("no caption" in warning for warning in score("chair", ROWS, many).warnings)
    assert any("20 images" in warning for warning in score("chair", ROWS, many, allow_missing=True).warnings)


def test_captions_that_name_nothing_give_null_with_a_warning_and_no_exception():
    report = score("chair", [row(1, ""), row(3, "Hello")], {"1": [], "3": []})
    assert report.metrics["CHAIRs"] == 0 and report.metrics["CHAIRi"] is None and report.metrics["Recall"] is None
    assert report.metrics["F1"] is None and any("CHAIRi" in warning for warning in report.warnings)
    assert any("empty" in warning for warning in report.warnings)
    assert score("chair", [row(1, "")], {"1": []}, zero_division=0).metrics["CHAIRi"] == 0


def test_a_wrong_caption_has_no_precision_problem_but_f1_of_zero_over_zero_is_null():
    report = score("chair", [row(1, "a cat")], TRUTH)
    assert report.metrics["Precision"] == 0 and report.metrics["Recall"] == 0 and report.metrics["F1"] is None


def test_figures_equal_the_plain_definition_on_random_captions():
    draw = random.Random(4)
    words = "a dog dogs cat bus buses toilet seat baby bear hot wine glass glasses , . and man men two".split()
    rows = [row(draw.randint(1, 3), " ".join(draw.choices(words, k=draw.randint(0, 15)))) for _ in range(300)]
    from hacl.evaluation.scorers.singular import singular

    expected = plain.rates(
        [([head for _, head in plain.mentions(r["caption"], singular)], set(TRUTH[str(r["image_id"])])) for r in rows]
    )
    metrics = score("chair", rows, TRUTH).metrics
    assert (metrics["CHAIRs"], metrics["CHAIRi"], metrics["Recall"]) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(9, "a dog")], r"prediction 1: image_id 9 is not in the references"),
        ([{"image_id": 1}], r"prediction 1: no 'caption'"),
        ([{"caption": "a dog"}], r"prediction 1: no 'image_id'"),
        ([row(1, None)], r"'caption' must be text"),
        ([row(1.5, "a dog")], r"'image_id' must be"),
        ([], r"nothing to score"),
    ],
)
def test_predictions_that_do_not_fit_are_named(rows, message):
    with pytest.raises(InputError, match=message):
        score("chair", rows, TRUTH)


# Ground truth


def coco(folder, year=2014, splits=("train", "val")):
    images = {"train": [10, 11], "val": [20, 21]}
    categories = [{"id": 1, "name": "person"}, {"id": 6, "name": "bus"}, {"id": 70, "name": "toilet"}]
    segments = {"train": [(10, 1), (10, 1), (10, 6)], "val": [(20, 70)]}
    captions = {"train": [(10, "A bus and a dog."), (11, "two women")], "val": [(20, "the toilet seat"), (20, "a bus")]}
    for split in splits:
        shared = {"info": {"year": year}, "images": [{"id": image} for image in images[split]], "licenses": []}
        instances = [{"image_id": i, "category_id": c, "segmentation": [[0.5, 1]]} for i, c in segments[split]]
        written = {
            "instances": shared | {"annotations": instances, "categories": categories},
            "captions": shared | {"annotations": [{"image_id": i, "caption": c} for i, c in captions[split]]},
        }
        for kind, content in written.items():
            (folder / f"{kind}_{split}{year}.json").write_text(json.dumps(content))
    return folder


def gt(references, image_id, **options):
    return score("chair", [row(image_id, "a dog")], references, **options).items[0]["gt"]


def test_truth_unites_segmentation_with_the_captions_of_both_splits(tmp_path):
    folder = coco(tmp_path)
    assert gt(folder, 10) == ["bus", "dog", "person"]
    assert gt(folder, 11) == ["person"]
    assert gt(folder, 20) == ["toilet"] and gt(folder, 20, dialect="wordnet") == ["bus", "toilet"]
    assert gt(folder, 21) == []  # known, and nothing is in it
    files = [folder / f"{kind}_{split}2014.json" for split in ("train", "val") for kind in ("instances", "captions")]
    assert gt(files, 10) == ["bus", "dog", "person"]
    assert gt({path.name: json.loads(path.read_text()) for path in files}, 20) == ["toilet"]
    inputs = score("chair", [row(10, "a dog")], folder).meta["inputs"]
    assert {str(path) for path in files} <= set(inputs)


def test_one_split_or_the_2017_files_serve_too(tmp_path):
    assert gt(coco(tmp_path, 2017, ("val",)), 20) == ["toilet"]


def test_segmentation_without_captions_is_refused(tmp_path):
    folder = coco(tmp_path)
    (folder / "captions_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions_val2014\.json"):
        score("chair", ROWS, folder)
    with pytest.raises(InputError, match="both instances and captions"):
        score("chair", ROWS, folder / "instances_val2014.json")


def test_a_folder_or_file_of_another_kind_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="instances_val2014"):
        score("chair", ROWS, tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        score("chair", ROWS, tmp_path / "none")
    (tmp_path / "instances_val2014.json").write_text('{"annotations": [')
    (tmp_path / "captions_val2014.json").write_text("{}")
    with pytest.raises(InputError, match="not JSON"):
        score("chair", ROWS, tmp_path)
    with pytest.raises(InputError, match="did you mean 'sports ball'"):
        score("chair", ROWS, {"1": ["sport ball"]})
    with pytest.raises(InputError, match="list of objects"):
        score("chair", ROWS, {"1": "dog"})


def test_rows_with_objects_and_captions_are_references_and_null_is_not_no_objects(tmp_path):
    rows = [
        {"coco_id": 1, "file_name": "a.jpg", "instances": {"dog": 2, "cat": 0}, "captions": ["a man"]},
        {"coco_id": 2, "file_name": "b.jpg", "instances": None, "captions": ["a man"], "chair_objects": ["bus"]},
        {"coco_id": 3, "file_name": "c.jpg", "instances": None, "captions": ["a man"]},
    ]
    path = tmp_path / "annotations.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for references in (path, rows):
        assert gt(references, 1) == ["dog", "person"] and gt(references, 2) == ["bus"]
        with pytest.raises(InputError, match="image_id 3 is not in the references"):
            gt(references, 3)


def test_a_cache_gives_the_figures_of_the_files_and_refuses_the_other_dialect(tmp_path):
    folder = coco(tmp_path)
    rows = [row(10, "a bus, two buses, a cat"), row(20, "a bus")]
    for dialect, other in (("pattern", "wordnet"), ("wordnet", "pattern")):
        truth = ChairScorer(folder, dialect=dialect).truth
        cache = tmp_path / f"{dialect}_cache.json"
        cache.write_text(json.dumps(truth.to_json({"inputs": {}})))
        from_cache = score("chair", rows, cache, dialect=dialect)
        assert from_cache.metrics == score("chair", rows, folder, dialect=dialect).metrics
        with pytest.raises(InputError, match=f"--dialect {dialect}"):
            score("chair", rows, cache, dialect=other)


# Tags from outside


def tags_of(rows, first=0):
    tokenizer = Tokenizer()
    for number, entry in enumerate(rows, first):
        tokens = tokenizer.tokens(entry["caption"].lower())
        yield {"index": number, "tokens": tokens, "tags": guess_tags(tokens)}


@pytest.mark.parametrize("first", [0, 1])
def test_tags_from_a_file_replace_the_tagger(tmp_path, first):
    rows = [*ROWS, row(2, "He is skiing past the planes")]
    path = tmp_path / "tags.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in tags_of(rows, first)))
    report = score("chair", rows, TRUTH, dialect="wordnet", tags=path)
    assert report.metrics == score("chair", rows, TRUTH, dialect="wordnet").metrics
    assert not any("guessed" in warning for warning in report.warnings)
    changed = list(tags_of(rows))
    changed[-1]["tags"] = ["PRP", "VBZ", "NN", "IN", "DT", "VBZ"]
    assert score("chair", rows, TRUTH, dialect="wordnet", tags=changed).items[-1]["generated"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "no more rows"),
        (lambda rows: [*rows, {"index": 4, "tokens": [], "tags": []}], "more rows than"),
        (lambda rows: rows[::-1], "index 3"),
        (lambda rows: [dict(r, index=n) for n, r in enumerate(rows[::-1])], "not those of the caption"),
        (lambda rows: [{**rows[0], "tags": ["NN"]}, *rows[1:]], "one text each"),
    ],
)
def test_tags_of_other_predictions_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        score("chair", ROWS, TRUTH, dialect="wordnet", tags=change(list(tags_of(ROWS))))


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="--tags is for --dialect wordnet"):
        score("chair", ROWS, TRUTH, tags=[])
    with pytest.raises(ValueError, match="not both"):
        score("chair", ROWS, TRUTH, max_words=3, match=ROWS)
    with pytest.raises(ValueError, match="use 1 or more"):
        score("chair", ROWS, TRUTH, max_words=0)
    with pytest.raises(ValueError, match="need new tags"):
        score("chair", ROWS, TRUTH, dialect="wordnet", tags=list(tags_of(ROWS)), max_words=3)
    with pytest.raises(ValueError, match="pattern, wordnet"):
        score("chair", ROWS, TRUTH, dialect="spacy")


def test_wordnet_without_data_says_that_tags_are_guessed():
    assert any("guessed" in warning for warning in score("chair", ROWS, TRUTH, dialect="wordnet").warnings)


# Equal length


def test_captions_cut_after_some_words_are_scored_beside_the_whole_ones():
    report = score("chair", ROWS, TRUTH, max_words=2)
    assert report.metrics == score("chair", ROWS, TRUTH).metrics
    cut = [row(r["image_id"], " ".join(r["caption"].split()[:2])) for r in ROWS]
    assert report.groups["length_matched"] == score("chair", cut, TRUTH).metrics


def test_matched_runs_have_the_same_length_on_every_image_and_a_run_matched_to_itself_is_unchanged():
    long = [row(1, "a dog and a man and a cat and a bus"), row(2, "a bus"), row(1, "a dog and a cat here")]
    short = [row(2, "a cat and a bus"), row(1, "a man by a dog"), row(1, "a bus")]
    one, other = score("chair", long, TRUTH, match=short), score("chair", short, TRUTH, match=long)
    assert one.groups["length_matched"]["Len"] == other.groups["length_matched"]["Len"]
    assert one.groups["length_matched"]["CHAIRs"] == 0 and one.metrics["CHAIRs"] == 2 / 3
    assert score("chair", long, TRUTH, match=long).groups["length_matched"] == one.metrics
    with pytest.raises(InputError, match="1 captions of image 1, this run more"):
        score("chair", long, TRUTH, match=short[:2])


def test_a_scorer_can_start_again_with_the_same_references():
    scorer = ChairScorer(TRUTH)
    items = [scorer.add(r, "here") for r in ROWS]
    other = scorer.again()
    assert [other.add(r, "here") for r in ROWS] == items
    assert other.finish(allow_missing=False).metrics == scorer.finish(allow_missing=False).metrics
    assert isinstance(other.extractor, PatternExtractor)
    assert ChairScorer(TRUTH, match=ROWS).again() is None
