"""Promises of the words behind CHAIR: tokens, singular forms, lemmas, tags, and the quirks of the published list."""

import json
import random
import subprocess
import sys
import zipfile

import pytest

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.chair_extract import PatternExtractor, WordnetExtractor, make_extractor
from hacl.evaluation.scorers.chair_lemmas import WordNetLemmas, chair_lemmas
from hacl.evaluation.scorers.chair_tagger import PerceptronTagger, guess_tags
from hacl.evaluation.scorers.chair_tokens import Tokenizer, split_sentence
from hacl.evaluation.scorers.chair_words import HEADS, JOINED, OBJECT_OF, UNREACHABLE
from hacl.evaluation.scorers.singular import singular
from tests.reference import chair as plain

PATTERN, WORDNET = PatternExtractor(), WordnetExtractor()


def objects(caption, extractor=PATTERN):
    return extractor.mentions(caption).objects


def test_the_list_has_eighty_heads_and_four_hundred_and_three_different_entries():
    assert len(HEADS) == 80 and len(OBJECT_OF) + len(UNREACHABLE) == 403
    assert set(OBJECT_OF.values()) == set(HEADS)
    assert set(UNREACHABLE).isdisjoint(OBJECT_OF)


# What nltk.word_tokenize (3.9.1, punkt_tab) gives.
TOKENS = [
    ("a dog, a cat.", ["a", "dog", ",", "a", "cat", "."]),
    ("a dog. a cat. the end", ["a", "dog", ".", "a", "cat", ".", "the", "end"]),
    ("a dog.the cat", ["a", "dog.the", "cat"]),
    ("the bear's paw and the dogs' bowls", ["the", "bear", "'s", "paw", "and", "the", "dogs", "'", "bowls"]),
    ("it can't, won't, cannot", ["it", "ca", "n't", ",", "wo", "n't", ",", "can", "not"]),
    ("i'm gonna see they'll wanna go", ["i", "'m", "gon", "na", "see", "they", "'ll", "wan", "na", "go"]),
    ('a "stop" sign', ["a", "``", "stop", "''", "sign"]),
    ('it says "stop." a dog', ["it", "says", "``", "stop", ".", "''", "a", "dog"]),
    ("(a dog) [a cat]", ["(", "a", "dog", ")", "[", "a", "cat", "]"]),
    ("wait... a bus!?", ["wait", "...", "a", "bus", "!", "?"]),
    ("mr. dog on main st. bus", ["mr.", "dog", "on", "main", "st.", "bus"]),
    ("row 3. the cat at 12:30 for $3.50", ["row", "3.", "the", "cat", "at", "12:30", "for", "$", "3.50"]),
    ("t-shirt -- and/or 50%", ["t-shirt", "--", "and/or", "50", "%"]),
    ("“hi” ‘a’ «b»", ["“", "hi", "”", "‘", "a", "’", "«", "b", "»"]),
    ("first\n\nsecond dog.\r\nthird", ["first", "second", "dog", ".", "third"]),
    ("**bold** #1; x", ["*", "*", "bold", "*", "*", "#", "1", ";", "x"]),
    ("'tis a dog", ["'t", "is", "a", "dog"]),
    ("wash. dog.;", ["wash", ".", "dog", ".", ";"]),
    ("", []),
    (" \n ", []),
    ("un café naïve 日本語。", ["un", "café", "naïve", "日本語。"]),
]


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_tokens_are_those_of_the_treebank_tokenizer(text, tokens):
    assert Tokenizer().tokens(text) == tokens


def _random_text(draw):
    pieces = [
        "dog.",
        "a",
        "cat's",
        "(the",
        "bus)",
        '"hot',
        'dog"',
        "u.s.",
        "it's",
        "two,",
        "...",
        "'",
        "x:",
        "3.",
        "end.'",
    ]
    return draw.choice(["", " "]) + draw.choice([" ", "  ", "\n"]).join(draw.choices(pieces, k=draw.randint(1, 12)))


def test_remembered_pieces_change_no_token():
    draw, tokenizer = random.Random(0), Tokenizer()
    for _ in range(2000):
        text = _random_text(draw)
        assert (
            tokenizer.tokens(text)
            == Tokenizer().tokens(text)
            == [token for sentence in plain.sentences(text) for token in split_sentence(sentence)]
        )


def test_a_sentence_splits_as_nltk_splits_it_where_nltk_is_installed():
    reference = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer()
    draw = random.Random(1)
    for text in [text for text, _ in TOKENS] + [_random_text(draw) for _ in range(2000)]:
        assert split_sentence(text) == reference.tokenize(text)


@pytest.mark.parametrize(
    ("text", "count"), [("dog " * 250_000, 250_000), ("a" * 1_000_000, 1), ("dog." + " " * 1_000_000 + "x", 3)]
)
def test_a_megabyte_is_split_in_linear_time(text, count):
    assert len(Tokenizer().tokens(text)) == count


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dogs", "dog"), ("bus", "bu"), ("buses", "bus"), ("minibus", "minibu"), ("glass", "glas"),
        ("glasses", "glass"), ("ties", "ty"), ("women", "woman"), ("people", "person"), ("children", "child"),
        ("knives", "knife"),
        ("scissors", "scissors"), ("skis", "ski"), ("doggies", "doggies"), ("four", "fmy"), ("was", "wa"), ("s", "s"),
        ("'", "'s"), ("''", "'s's"), ("dogs'", "dog's"), ("data", "datum"), ("police", "polouse"),
        ("as", "as"), ("couches", "couch"), ("vases", "vase"), ("mice", "mouse"), ("", ""),
        ("mothers-in-law", "mother-in-law"), ("shoes", "shoe"), ("matrices", "matrix"), ("crises", "crisis"),
        ("boxes", "box"), ("movies", "movie"), ("berries", "berry"), ("loaves", "loaf"), ("scarves", "scarf"),
        ("curves", "curf"), ("olives", "olife"), ("hives", "hive"), ("roses", "rose"), ("neuroses", "neurose"),
        ("psychoanalyses", "psychoanalyasis"), ("geese", "goose"), ("luggage", "luggage"), ("pies", "py"),
    ],
)  # fmt: skip
def test_singular_forms_are_those_of_pattern_right_or_wrong(word, expected):
    assert singular(word) == expected


QUIRKS = [
    # caption, pattern, wordnet
    ("a bus", [], ["bus"]),
    ("two buses", ["bus"], ["bus"]),
    ("a minibus, an airbus", [], ["bus", "airplane"]),
    ("two men", ["person"], []),
    ("two women and people", ["person", "person"], ["person", "person"]),
    ("three vases", ["vase"], []),
    ("two ties", [], ["tie"]),
    ("a bow tie", ["tie"], ["tie"]),
    ("he is skiing", [], ["skis"]),
    ("she is seated", [], ["chair"]),
    ("a glass", [], []),
    ("a wine glass, two wine glasses", ["wine glass", "wine glass"], ["wine glass", "wine glass"]),
    ("the toilet seat", ["toilet"], ["toilet"]),
    ("the seat of the toilet", ["toilet"], ["toilet"]),
    ("a toilet and two chairs and a seat", ["toilet", "chair"], ["toilet", "chair"]),
    ("a seat", ["chair"], ["chair"]),
    ("a baby", ["person"], ["person"]),
    ("a baby elephant, an adult dog", ["elephant", "dog"], ["elephant", "dog"]),
    ("a baby animal and a baby cub", [], []),
    ("a baby panda", ["person", "bear"], ["person", "bear"]),
    ("a passenger train, a passenger jet", ["train", "airplane"], ["train", "airplane"]),
    ("a passenger plane", ["person", "airplane"], ["person", "airplane"]),
    ("a train track, home plate", [], []),
    ("a motor bike", [], []),
    ("a motorbike and a motor cycle", ["motorcycle", "motorcycle"], ["motorcycle", "motorcycle"]),
    ("a slice of cheesecake, a cupcake", ["cake"], ["cake"]),
    ("an iPhone, an iphone", [], []),
    ("a stove top oven", ["oven", "oven"], ["oven", "oven"]),
    ("an orange shirt", ["orange"], ["orange"]),
    ("a computer mouse", ["laptop", "mouse"], ["laptop", "mouse"]),
    ("hot dogs", ["hot dog"], ["hot dog"]),
    ("hot, dogs", ["dog"], ["dog"]),
    ("A DOG and a Dog", ["dog", "dog"], ["dog", "dog"]),
    ("the dog's bowl.", ["dog", "bowl"], ["dog", "bowl"]),
    ("teddy bears and scissors", ["teddy bear", "scissors"], ["teddy bear", "scissors"]),
    ("a couch.a dog", ["dog"], ["dog"]),
    ("", [], []),
]


@pytest.mark.parametrize(("caption", "pattern", "wordnet"), QUIRKS)
def test_quirks_of_the_published_scorer_are_kept(caption, pattern, wordnet):
    assert objects(caption) == pattern
    assert objects(caption, WORDNET) == wordnet


def test_tags_decide_the_lemma():
    lemma = chair_lemmas()
    assert [lemma("planes", "NNS"), lemma("planes", "VBZ")] == ["plane", "plan"]
    assert [lemma("parking", "NN"), lemma("parking", "VBG")] == ["parking", "park"]
    assert [lemma("couches", "NNS"), lemma("couches", "JJ")] == ["couch", "couches"]
    assert [lemma(word, "NNS") for word in ("men", "vases", "sports", "mice")] == ["men", "vas", "sport", "mouse"]
    assert [lemma(word, "XX") for word in ("dogs", "quickly", "")] == ["dog", "quickly", ""]


def test_extraction_equals_the_plain_definition_on_any_mix_of_words():
    draw, lemma = random.Random(2), chair_lemmas()
    words = (
        sorted(OBJECT_OF)
        + sorted(JOINED)
        + ["a", ",", ".", "toilet", "seat", "buses", "two", "skiing", "seated", "men"]
    )
    for _ in range(500):
        caption = " ".join(draw.choices(words, k=draw.randint(0, 20)))
        found = PATTERN.mentions(caption)
        assert list(zip(found.words, found.objects, strict=True)) == plain.mentions(caption, singular)
        found = WORDNET.mentions(caption)
        expected = plain.mentions(caption, lambda token: lemma(token, guess_tags([token])[0]))
        assert list(zip(found.words, found.objects, strict=True)) == expected


def _wordnet_files():
    index = {"noun": "dog bus man men vas vase", "verb": "ski plan plane", "adj": "hot", "adv": "home"}
    exceptions = {"noun": "men man\nmice mouse", "verb": "", "adj": "hotter hot", "adv": ""}
    for name, lemmas in index.items():
        yield f"index.{name}", "  1 licence\n" + "".join(f"{lemma} x 1 0 1 0 00001\n" for lemma in lemmas.split())
        yield f"{name}.exc", exceptions[name] + "\n"


@pytest.mark.parametrize("zipped", [False, True])
def test_lemmas_come_from_wordnet_files_unpacked_or_zipped(tmp_path, zipped):
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    if zipped:
        with zipfile.ZipFile(tmp_path / "corpora" / "wordnet.zip", "w") as archive:
            for name, text in _wordnet_files():
                archive.writestr(f"wordnet/{name}", text)
    else:
        for name, text in _wordnet_files():
            (folder / name).write_text(text)
    lemma = WordNetLemmas.from_data(tmp_path)
    assert [lemma(word, "NNS") for word in ("dogs", "men", "vases", "cats")] == ["dog", "men", "vas", "cats"]
    assert [lemma("skiing", "VBG"), lemma("planes", "VBZ"), lemma("hotter", "JJR")] == ["ski", "plan", "hot"]


def _write_tagger(folder, weights, tagdict, classes):
    name = "averaged_perceptron_tagger_eng"
    place = folder / "taggers" / name
    place.mkdir(parents=True)
    for part, content in (("weights", weights), ("tagdict", tagdict), ("classes", classes)):
        (place / f"{name}.{part}.json").write_text(json.dumps(content))


def test_the_tagger_reads_the_model_and_breaks_ties_by_the_last_name(tmp_path):
    weights = {"i word ducks": {"VBZ": 1.0}, "i-1 tag DT": {"NN": 2.0}, "i suffix ing": {"VBG": 0.5}}
    _write_tagger(tmp_path, weights, {"the": "DT"}, ["DT", "NN", "VBG", "VBZ"])
    tagger = PerceptronTagger.from_data(tmp_path)
    assert tagger.tags(["the", "ducks"]) == ["DT", "NN"]
    assert tagger.tags(["ducks", "flying", "zzz"]) == ["VBZ", "VBG", "VBZ"]
    assert tagger.tags([]) == []
    extractor, notes = make_extractor("wordnet", tmp_path)
    assert extractor.mentions("the ducks").objects == ["bird"] and "built-in table" in notes[0]


def test_a_folder_without_language_data_is_an_error_that_says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"averaged_perceptron_tagger_eng.*pass --tags instead"):
        make_extractor("wordnet", tmp_path)
    _, notes = make_extractor("wordnet", tmp_path, tagged=True)
    assert "guessed" in notes[0] and "wordnet-base" in notes[1]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        make_extractor("wordnet", tmp_path / "none")
    with pytest.raises(ValueError, match="pattern dialect needs no data"):
        make_extractor("pattern", tmp_path)
    (tmp_path / "index.noun").write_text("dog n 1 0 1 0 1\n")
    with pytest.raises(InputError, match="noun.exc"):
        WordNetLemmas.from_data(tmp_path)


def test_the_words_of_chair_need_neither_torch_nor_nltk():
    code = (
        "import sys, hacl.evaluation.scorers.chair; "
        "sys.exit(bool({'torch', 'transformers', 'nltk', 'pattern'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
