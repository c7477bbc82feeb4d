"""Promises of the quality audit: each planted fault moves its own figure, and the page stands by itself."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hacl.data.records import HallucinatedCaption, Record, write_records
from hacl.hallucinate.quality import assess, false_negatives, grammar_slips, object_is_false
from hacl.hallucinate.quality_page import examples, page
from hacl.hallucinate.survey import Survey
from hacl.hallucinate.vocabulary import default_lexicon

ROOT = Path(__file__).resolve().parents[2]


def made(text, kind="object", of=0):
    return HallucinatedCaption(text, kind, (0, len(text)), "test", of)


def records(count=40):
    rows = []
    for n in range(count):
        caption = f"A dog on a couch in room {'red blue green grey'.split()[n % 4]}."
        wrong = [made(caption.replace("dog", "cat")), made(caption.replace("on", "under"), "relation")]
        wrong += [made(caption.replace("A dog", "Two dogs"), "number"), made(caption.replace("couch", "bed"))]
        rows.append(Record(str(n), (), str(n), (caption, "a dog"), tuple(wrong), objects={"dog": 1, "couch": 1}))
    return rows


@pytest.mark.parametrize(
    ("text", "slips"),
    [
        ("A cat on a couch.", []),
        ("A elephant on a couch.", ["article"]),
        ("A dog on on a couch.", ["doubled word"]),
        ("A the dog on a couch.", ["two determiners"]),
        ("A dog on two couch.", ["number"]),
        ("a dog on a couch.", ["capital"]),
        ("A dog on a couch", ["full stop"]),
    ],
)
def test_the_grammar_check_names_what_is_wrong(text, slips):
    assert grammar_slips(text, "A dog on a couch.") == slips


def test_slips_of_the_caption_are_not_held_against_its_edit():
    assert grammar_slips("A elephant on on a bed", "A elephant on on a couch") == []


def test_an_object_edit_is_false_unless_anything_known_has_the_object():
    record = Record("1", (), "1", ("A dog here.", "two cats"), objects={"dog": 1}, extra={"chair_objects": ["bench"]})
    lexicon = default_lexicon()
    assert object_is_false(record, made("A horse here."), lexicon) is True
    assert object_is_false(record, made("A cat here."), lexicon) is False
    assert object_is_false(record, made("A bench here."), lexicon) is False
    assert object_is_false(record, made("A horse here.", "action"), lexicon) is None


def test_figures_follow_what_is_planted():
    report = assess(records(), default_lexicon(), wanted=4, folds=3)
    assert report.types == {"object": 80, "relation": 40, "number": 40}
    assert report.complete == 0.5  # the second caption of each record has none
    assert report.objects_false == 1.0 and report.object_edits == 80
    assert report.grammatical == 1.0
    assert report.leaks[0].auc > 0.9  # the same words are exchanged in every record
    assert report.words == 0


def test_language_model_and_embedder_add_their_probes():
    def scorer(texts):
        return [-float(len(text)) for text in texts]

    def embedder(texts):
        return np.array([[len(text), text.count("cat")] for text in texts], dtype=float)

    report = assess(records(), default_lexicon(), scorer=scorer, embedder=embedder, folds=3)
    assert [leak.probe for leak in report.leaks][1:] == ["sentence embedding", "blind log-likelihood"]
    assert report.fluency_gap is not None


def test_a_file_without_hallucinated_captions_is_refused():
    with pytest.raises(ValueError, match="no hallucinated caption"):
        assess([Record("1", captions=("a dog",))], default_lexicon())


def test_knowing_more_captions_makes_fewer_candidates_true_after_all():
    said = (
        "A dog on a couch in a room.",
        "a cat sits near",
        "a white cat and a dog",
        "a book on a bed",
        "a lamp and a cat",
    )
    rows = [Record(str(n), (), str(n), said, objects={"dog": 1, "cat": 1, "couch": 1}) for n in range(6)]
    survey = Survey()
    for row in rows:
        survey.add(row)
    shares = false_negatives(rows, survey, k=30)
    assert set(shares) == {1, 2, 3, 4}
    assert shares[1] >= shares[4]


def test_the_page_shows_captions_as_text_and_loads_nothing():
    rows = [Record("<1>", captions=("a <b> dog",), hallucinated=(made("a <b> cat"),))]
    report = assess(records(), default_lexicon(), folds=3)
    text = page(report, examples(rows, 5, 0), title="t", image_root=None)
    assert "a &lt;b&gt; cat" in text and "<b> cat" not in text
    assert "src=" not in text and "http:" not in text
    assert examples(records(), 7, 1) == examples(records(), 7, 1)


def test_the_command_prints_and_writes_the_figures(tmp_path):
    file, out, shown = tmp_path / "h.jsonl", tmp_path / "a.json", tmp_path / "a.html"
    write_records(file, records())
    command = [
        sys.executable,
        str(ROOT / "data_prep" / "audit.py"),
        str(file),
        "--json",
        str(out),
        "--html",
        str(shown),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "TF-IDF" in done.stdout and json.loads(out.read_text())["objects_false"] == 1.0
    assert shown.read_text().startswith("<!doctype html>")
    missing = subprocess.run([*command[:2], "no.jsonl"], capture_output=True, text=True, cwd=ROOT)
    assert missing.returncode == 1 and "no.jsonl" in missing.stderr and "Traceback" not in missing.stderr
