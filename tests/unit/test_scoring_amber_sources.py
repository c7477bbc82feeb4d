"""AMBER: where its references, nouns and word similarities may come from."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from hacl.evaluation.scorers import InputError, score
from hacl.evaluation.scorers.amber_nouns import VocabularyNouns
from hacl.evaluation.scorers.amber_references import open_references
from tests.unit.test_scoring_amber import MIXED, RELATION, SAFE, caption_report, image, references


def test_references_open_as_folder_file_files_or_content(tmp_path):
    content = references(*MIXED)
    folder = tmp_path / "AMBER" / "data"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(content["annotations"]), encoding="utf-8")
    (folder / "relation.json").write_text("\ufeff" + json.dumps(RELATION), encoding="utf-8")
    (folder / "safe_words.txt").write_bytes(b"orange\r\nlight")
    files = [folder / name for name in ("annotations.json", "relation.json", "safe_words.txt")]
    shapes = [folder, folder.parent, str(files[0]), files, files[::-1], content]
    shapes += [[content["annotations"], RELATION, SAFE], dict(zip(content, files, strict=True))]
    for shape in shapes:
        opened = open_references(shape)
        assert opened.safe_words == {"orange", "light"} and len(opened) == 4 and opened.group(4) == "existence"
    rows = [{"id": 1, "response": "a dog"}, {"id": 2, "response": "a cat"}]
    report = score("amber", rows, folder)
    assert {str(path) for path in files} <= set(report.meta["inputs"])
    files[2].unlink()
    with pytest.raises(FileNotFoundError, match="safe_words.txt"):
        open_references(folder)
    with pytest.raises(InputError, match="relation"):
        open_references({"annotations": []})


def test_nouns_and_similarity_come_from_files(tmp_path):
    nouns, table = tmp_path / "nouns.jsonl", tmp_path / "table.json"
    nouns.write_text('{"id": 1, "nouns": ["wolf", "cat"]}\n', encoding="utf-8")
    table.write_text('{"dog|wolf": 0.9}', encoding="utf-8")
    options = {"nouns": str(nouns), "similarity": f"table:{table}", "rounding": "none"}
    report = score("amber", [{"id": 1, "response": "?"}], references(image(["dog"])), **options)
    assert report.metrics["CHAIR"] == 50 and {str(nouns), str(table)} <= set(report.meta["inputs"])
    with pytest.raises(InputError, match="no nouns for id 2"):
        score("amber", [{"id": 2, "response": "?"}], references(*MIXED), allow_missing=True, **options)
    nouns.write_text('{"id": 1, "nouns": ["a"]}\n{"id": 1, "nouns": ["a"]}\n', encoding="utf-8")
    with pytest.raises(InputError, match="nouns.jsonl:2"):
        score("amber", [{"id": 1, "response": "?"}], references(image(["dog"])), **options)
    table.write_text('{"dog wolf": 0.9}', encoding="utf-8")
    with pytest.raises(InputError, match="dog wolf"):
        caption_report(image(["dog"]), [], similarity=f"table:{table}")
    with pytest.raises(InputError, match="exact, table:FILE"):
        caption_report(image(["dog"]), [], similarity="vectors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        caption_report(image(["dog"]), [], similarity="table:nowhere.json")


def test_a_function_may_serve_as_similarity_and_as_noun_source():
    rows = [{"id": 1, "response": "WOLF CAT"}]
    report = score(
        "amber",
        rows,
        references(image(["dog"])),
        nouns=lambda response: response.lower().split(),
        similarity=lambda word, other: 0.81 if {word, other} == {"wolf", "dog"} else 0.0,
    )
    assert report.items[0]["hallucinated"] == ["cat"]


def test_spacy_vectors_are_asked_when_named(monkeypatch):
    class Doc(str):
        def similarity(self, other):
            return 0.9 if {self, other} == {"wolf", "dog"} else 0.0

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda model: Doc))
    report = caption_report(image(["dog"]), ["wolf"], similarity="spacy:en_core_web_lg")
    assert report.items[0]["covered"] == ["dog"]
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match="install spacy"):
        caption_report(image(["dog"]), ["wolf"], similarity="spacy:en_core_web_lg")


def nltk_data(folder):
    """A tagger and a WordNet of a few words in NLTK's layout."""
    tags = {
        "Dogs": "NNS",
        "Boats": "NNS",
        "sail": "VBP",
        "the": "DT",
        "boats": "NNS",
        "sun": "NN",
        "men": "NNS",
        ".": ".",
    }
    tagger, wordnet = folder / "taggers" / "averaged_perceptron_tagger_eng", folder / "corpora" / "wordnet"
    tagger.mkdir(parents=True)
    wordnet.mkdir(parents=True)
    for part, content in {"weights": {}, "tagdict": tags, "classes": ["NN"]}.items():
        (tagger / f"averaged_perceptron_tagger_eng.{part}.json").write_text(json.dumps(content), encoding="utf-8")
    for kind in ("noun", "verb", "adj", "adv"):
        (wordnet / f"index.{kind}").write_text(
            "boat n\nsun n\nman n\ndog n\n" if kind == "noun" else "", encoding="utf-8"
        )
        (wordnet / f"{kind}.exc").write_text("men man\n" if kind == "noun" else "", encoding="utf-8")
    return folder


def test_nouns_by_tag_and_wordnet_follow_the_official_steps(tmp_path):
    rows = [{"id": 1, "response": "Dogs sail. Boats sail the boats.  the sun sail the men."}]
    report = score("amber", rows, references(image(["dog"])), nltk_data=nltk_data(tmp_path))
    # A capitalised plural has no lemma and vanishes; so does "dogs" that starts a sentence.
    assert report.items[0]["nouns"] == ["boat", "sun", "man"]
    assert not any("word finder" in line for line in report.warnings)
    with pytest.raises(InputError, match="not both"):
        score("amber", rows, references(image(["dog"])), nltk_data=tmp_path, nouns={1: []})
    with pytest.raises(FileNotFoundError, match="no tagger"):
        score("amber", rows, references(image(["dog"])), nltk_data=tmp_path / "corpora")


def test_the_shipped_noun_finder_reads_plurals_and_leaves_verbs_alone():
    vocabulary = open_references(references(image(["dog"]))).vocabulary | {"bus", "child", "TV", "glass", "leave"}
    find = VocabularyNouns(vocabulary)

    def nouns(text):
        return find(1, text, "here")

    assert nouns("Two dogs, three buses and children near a TV.") == ["dog", "bus", "child", "TV"]
    assert nouns("You can see a can; people leave. The leaves fall.") == ["can", "people", "leave"]
    assert nouns("Cans, more cans") == ["can", "can"]
    assert nouns("The ship’s MAN drinks from glasses") == ["ship", "man", "glass"]
    assert nouns("") == [] and nouns("日本語 🙂") == []
