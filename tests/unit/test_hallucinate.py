"""Promises of the lexical generator: false of the image, proper English, varied, and the same every time."""

from collections import Counter

import pytest

from hacl.data.convert import convert
from hacl.data.records import HALLUCINATION_TYPES, Record, Turn
from hacl.hallucinate import (
    AttributeSet,
    LexicalHallucinator,
    Lexicon,
    ObjectKind,
    PhraseRule,
    cooccurrence,
    default_lexicon,
    make_hallucinator,
)
from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.english import (
    Replacement,
    apply,
    article,
    base_form,
    is_plural,
    plural,
    same_text_key,
    singular,
    words_of,
)
from hacl.hallucinate.filters import DEFAULT_FILTERS, first_reason
from tests.photographs import coco_mini  # noqa: F401 (a fixture)


def record(*captions, objects=None, id="1", **extra):
    return Record(id, ("a.jpg",), id, captions, objects=objects, **extra)


def texts(rec, kind, k=400, index=0, **options):
    """Every hallucinated caption of one type."""
    return {caption.text for caption in LexicalHallucinator(types=[kind], **options).propose(rec, index, k)}


# English


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"), ("bus", "buses"), ("man", "men"), ("woman", "women"), ("knife", "knives"),
        ("couch", "couches"), ("sheep", "sheep"), ("sandwich", "sandwiches"), ("stop sign", "stop signs"),
        ("wine glass", "wine glasses"),
        ("teddy bear", "teddy bears"), ("puppy", "puppies"), ("vase", "vases"), ("horse", "horses"), ("toy", "toys"),
        ("glass", "glasses"), ("bench", "benches"), ("box", "boxes"), ("orange", "oranges"), ("house", "houses"),
    ],
)  # fmt: skip
def test_number_forms(one, many):
    assert plural(one) == many
    assert singular(many.rpartition(" ")[2]) == one.rpartition(" ")[2]
    assert is_plural(one) is False


def test_every_written_word_goes_to_its_plural_and_back():
    for kind in default_lexicon().objects.values():
        for word in kind.words:
            last = word.split()[-1]
            assert singular(plural(last)) == last, word


@pytest.mark.parametrize(
    ("word", "wanted"),
    [("apple", "an"), ("dog", "a"), ("umbrella", "an"), ("unicorn", "a"), ("hour", "an"), ("one", "a"), ("oven", "an"),
     ("uniform", "a"), ("elderly man", "an"), ("used car", "a"), ("orange", "an"), ("unusual dog", "an"),
     ("unhappy man", "an"), ("onion", "an"), ("unripe banana", "an")],
)  # fmt: skip
def test_articles(word, wanted):
    assert article(word) == wanted


def test_verbs_lose_their_third_person():
    forms = {"sits": "sit", "catches": "catch", "carries": "carry", "is": "are", "has": "have", "lies": "lie"}
    for third, base in forms.items():
        assert base_form(third) == base, third


@pytest.mark.parametrize(
    ("text", "old", "new", "wanted", "edited"),
    [
        ("A dog runs.", "dog", "elephant", "An elephant runs.", "An elephant"),
        ("an apple", "apple", "banana", "a banana", "a banana"),
        ("A DOG RUNS", "DOG", "cat", "A CAT RUNS", "CAT"),
        ("A DOG RUNS", "A", "one", "ONE DOG RUNS", "ONE"),
        ("Dogs run", "Dogs", "cats", "Cats run", "Cats"),
        ("It sits. Dogs run", "Dogs", "cats", "It sits. Cats run", "Cats"),
        ("see the dog", "dog", "owl", "see the owl", "owl"),
    ],
)
def test_an_edit_keeps_article_case_and_span_right(text, old, new, wanted, edited):
    at = text.index(old)
    result, (start, end) = apply(text, [Replacement(at, at + len(old), new)])
    assert result == wanted
    assert result[start:end] == edited


def test_the_span_of_an_insertion_leaves_out_its_space():
    result, (start, end) = apply("a dog.", [Replacement(5, 5, " near a cat")])
    assert (result, result[start:end]) == ("a dog near a cat.", "near a cat")


# What is written


def test_an_object_becomes_an_absent_one_and_never_a_present_one():
    one = record("A dog on a couch.", objects={"dog": 1, "couch": 1})
    assert "A cat on a couch." in texts(one, "object")
    annotated = record("A dog on a couch.", objects={"dog": 1, "couch": 1, "cat": 1})
    assert not any("cat" in text for text in texts(annotated, "object"))


@pytest.mark.parametrize("other", ["two kittens play", "a cat's tail", "the CAT sleeps", "some animals on a couch"])
def test_what_another_caption_says_or_hints_at_is_not_written(other):
    assert not any("cat" in text for text in texts(record("A dog on a couch.", other, objects={}), "object"))


def test_what_an_answer_says_is_not_written():
    told = record(
        "A dog on a couch.", conversation=(Turn("user", "<image>"), Turn("assistant", "There is also a cat."))
    )
    assert not any("cat" in text for text in texts(told, "object"))


def test_the_inside_of_a_compound_is_left_alone():
    for text in (
        "A fire truck on a street.",
        "A dog bed on the floor.",
        "A laptop computer on a desk.",
        "A hot dog stand",
    ):
        changed = {t for t in texts(record(text), "object")} | texts(record(text), "number")
        assert not any(
            word in t for t in changed for word in ("fire bus", "cat bed", "book computer", "laptops computer")
        )
        assert not any("pizza stand" in t for t in changed)


def test_a_verb_keeps_an_object_it_can_have():
    riding = texts(record("A man riding a bike on a road.", objects={"person": 1, "bicycle": 1}), "object")
    assert "A man riding a skateboard on a road." in riding
    assert not any("horse" in text or "truck" in text for text in riding)
    eaten = texts(record("A man eating a pizza.", objects={"person": 1, "pizza": 1}), "object")
    assert {text.split(" a ")[1] for text in eaten if "woman" not in text.lower()} == {"sandwich.", "cake.", "hot dog."}
    assert not any("boat" in t for t in texts(record("A plane flying in the sky.", objects={"airplane": 1}), "object"))


def test_a_man_becomes_a_woman_only_where_that_is_surely_false():
    captions = ("A man at a table.", "A man sits there.", "A person and a plate.")
    assert "A woman at a table." in texts(record(*captions, objects={"person": 1}), "attribute")
    assert not any("woman" in t for t in texts(record(*captions, objects={"person": 2}), "attribute"))
    assert not any("woman" in t for t in texts(record(*captions, "people eat"), "attribute"))
    alone = ("A man at a table.", "A person sits there.", "A person and a plate.")
    assert not any("woman" in t for t in texts(record(*alone, objects={"person": 1}), "attribute"))
    with_pronoun = ("A man with his plate.", "A man sits.", "A man.")
    assert not any("woman" in t for t in texts(record(*with_pronoun, objects={"person": 1}), "attribute"))


def test_a_word_that_may_stand_for_something_present_is_not_written():
    street = record("A bus driving down a long and rather busy street in town.", objects={"bus": 1, "motorcycle": 2})
    assert not any("bike" in text for text in texts(street, "insertion"))
    assert texts(record("A bedroom with a lamp.", objects={"bed": 1}), "number") == set()


def test_a_number_is_never_the_annotated_one():
    found = texts(record("Two dogs on a beach.", objects={"dog": 3}), "number")
    assert found and not any(text.startswith("Three") for text in found)


def test_fewer_than_there_are_is_true_and_not_written():
    assert texts(record("Four dogs on a beach.", objects={"dog": 6}), "number") == {"Seven dogs on a beach."}
    assert "Several dogs on a beach." not in texts(record("Two dogs on a beach.", objects={"dog": 4}), "number")


def test_one_thing_becomes_several_with_its_verb():
    found = texts(record("A dog is on a couch.", objects={"dog": 1, "couch": 1}), "number")
    assert "Two dogs are on a couch." in found
    assert texts(record("A dog is on a couch.", objects={"dog": 2, "couch": 1}), "number") == set()


@pytest.mark.parametrize("text", ["A dog wags its tail.", "A dog on a bed is asleep.", "A dog and cat on a bed."])
def test_a_number_that_would_break_the_grammar_is_left_out(text):
    assert texts(record(text, objects={"dog": 1, "cat": 1, "bed": 1}), "number") == set()


def test_a_colour_is_neither_said_nor_hard_to_tell_apart():
    found = texts(
        record("A red car on a street.", "a car beside a blue truck", objects={"car": 1, "truck": 1}), "attribute"
    )
    colours = {text.split()[1] for text in found}
    assert "green" in colours
    assert not colours & {"red", "blue", "orange", "pink"}


def test_a_colour_is_one_the_thing_can_have():
    found = {text.split()[1] for text in texts(record("A brown dog."), "attribute")}
    assert found == {"black", "white", "grey"}


def test_black_and_white_is_not_torn_apart():
    assert texts(record("A black and white cat on a bed."), "attribute") == set()


def test_an_article_follows_the_new_attribute():
    assert "An elderly man on a bench." in texts(record("A young man on a bench."), "attribute")


def test_a_relation_is_turned_round():
    found = texts(record("A cat on a bed.", objects={"cat": 1, "bed": 1}), "relation")
    assert "A cat under a bed." in found
    said = record("A cat on a bed.", "a shoe is underneath it", objects={"cat": 1, "bed": 1})
    assert not any("under" in text for text in texts(said, "relation"))


def test_an_action_becomes_another():
    found = texts(record("A man sitting on a bench.", objects={"person": 1, "bench": 1}), "action")
    assert "A man standing on a bench." in found
    assert texts(record("A vase sitting on a table.", objects={"vase": 1}), "action") == set()
    assert texts(record("A man in the stands in front of a wall."), "action") == set()


def test_an_added_object_is_absent_and_suits_the_scene():
    lamb = record("A white sheep is standing in the middle of a big green field.", objects={"sheep": 1})
    found = texts(lamb, "insertion")
    assert found
    names = {name for text in found for name in default_lexicon().named(words_of(text))} - {"sheep"}
    assert names <= {"horse", "cow", "dog", "bird", "truck", "backpack", "handbag", "suitcase"}


def test_unannotated_images_do_not_get_what_their_setting_suggests():
    rec = record("A small clean bathroom with one towel and a toothbrush in it by a window.")
    found = texts(rec, "insertion")
    assert found and not any("toilet" in text or "sink" in text for text in found)


# The generator


SCENE = record(
    "A young man riding a red bike down a street near two dogs.",
    "a man on a bike",
    objects={"person": 1, "bicycle": 1, "dog": 2},
)


def test_the_same_arguments_give_the_same_captions_and_other_seeds_others():
    first, second = (LexicalHallucinator(seed=1).propose(SCENE, 0, 4) for _ in range(2))
    assert first == second
    assert any(LexicalHallucinator(seed=s).propose(SCENE, 0, 4) != first for s in range(2, 6))


def test_a_generator_forgets_earlier_records():
    used = LexicalHallucinator()
    used.propose(record("A cat on a bed.", id="9"), 0, 3)
    assert used.propose(SCENE, 0, 4) == LexicalHallucinator().propose(SCENE, 0, 4)


def test_candidates_differ_and_types_take_turns():
    made = LexicalHallucinator().propose(SCENE, 0, 4)
    assert len({caption.text for caption in made}) == 4
    assert len({caption.type for caption in made}) == 4
    assert all(caption.source == "lexical" and caption.of == 0 for caption in made)


def test_only_the_types_asked_for_are_made():
    made = LexicalHallucinator(types=["number"]).propose(SCENE, 0, 9)
    assert {caption.type for caption in made} == {"number"}
    with pytest.raises(ValueError, match="unknown"):
        LexicalHallucinator(types=["numbers"])


def test_a_caption_without_a_place_gives_nothing():
    assert LexicalHallucinator().propose(record("Nothing much."), 0, 3) == []


def test_statistics_make_objects_of_the_same_scenes_likelier():
    seen = [record("x", objects={"dog": 1, "frisbee": 1}, id=str(n)) for n in range(9)]
    together = cooccurrence([*seen, record("x", objects={"dog": 1, "bench": 1}, id="b"), seen[0]])
    assert together.images == {"dog": 10, "frisbee": 9, "bench": 1}
    assert together.weight("frisbee", {"dog"}) == 0.9
    assert together.weight("bench", {"dog"}) == 0.1
    assert together.weight("car", {"dog"}) == 0.01


def test_statistics_make_common_words_likelier():
    together = cooccurrence([record("a dog near a dog"), record("a cat", id="2")])
    assert together.commonness("dog") > together.commonness("cat") > together.commonness("far from") > 0
    assert together.commonness("a dog") == together.commonness("dog")


def test_generators_are_made_by_name():
    assert make_hallucinator("lexical", seed=3).propose(SCENE, 0, 2) == LexicalHallucinator(seed=3).propose(SCENE, 0, 2)
    with pytest.raises(ValueError, match="available: lexical"):
        make_hallucinator("lexicl")


def test_an_index_out_of_range_names_the_record():
    with pytest.raises(ValueError, match="'1'"):
        LexicalHallucinator().propose(SCENE, 2, 1)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"text": "a MAN on a bike!"}, "same as a caption"),
        ({"text": "x " * 13, "adds": frozenset({"dog"})}, "object is present"),
        ({"text": "x " * 13, "claims": frozenset({"woman", "bikes"})}, "said by a caption"),
        ({"text": "a dog"}, "too long or too short"),
        ({"text": "A young man riding riding bike down a street near two dogs."}, "repeated word"),
        ({"text": "A young man riding a blue bike down a street near two dogs."}, None),
    ],
)
def test_each_filter_says_why(candidate, reason):
    context = ImageContext(SCENE, 0, default_lexicon())
    made = Candidate(**{"type": "object", "span": (0, 1), "slot": (0, 1), "phrase": "x", **candidate})
    assert first_reason(made, context, DEFAULT_FILTERS) == reason


def test_another_world_brings_its_own_words():
    kinds = {
        name: ObjectKind(name, "shape", (name,), (), tuple(n for n in ("cube", "ball", "cone") if n != name))
        for name in ("cube", "ball", "cone")
    }
    toy = Lexicon(
        objects=kinds,
        attributes=(AttributeSet("colour", ("red", "blue", "green")),),
        phrases=(PhraseRule("relation", "left of", ("right of",)), PhraseRule("relation", "above", ("below",))),
        numbers={"two": 2, "three": 3},
        adjectives=frozenset({"red", "blue", "green"}),
        followers=frozenset({"and", "is", "left", "above"}),
    )
    scene = record("a red cube is left of two balls", objects={"cube": 1, "ball": 2})
    made = LexicalHallucinator(lexicon=toy).propose(scene, 0, 50)
    found = {caption.text for caption in made}
    assert "a red cube is right of two balls" in found
    assert "a blue cube is left of two balls" in found
    assert "a red cone is left of two balls" in found
    assert "a red cube is left of three balls" in found
    assert {caption.type for caption in made} <= {"object", "attribute", "number", "relation", "insertion"}


# Real captions


@pytest.fixture(scope="module")
def real(coco_mini):  # noqa: F811
    records = convert(coco_mini / "annotations.jsonl")
    generator = LexicalHallucinator(cooccurrence=cooccurrence(records))
    made = [(rec, h) for rec in records[:120] for i in range(len(rec.captions)) for h in generator.propose(rec, i, 3)]
    return records, made, generator


def test_real_captions_give_every_type_and_mostly_three_each(real):
    records, made, _ = real
    counts = Counter(h.type for _, h in made)
    assert set(counts) >= {"object", "attribute", "number", "relation", "action", "insertion"}
    assert set(counts) <= set(HALLUCINATION_TYPES)
    assert len(made) > 1.8 * sum(len(rec.captions) for rec in records[:120])


def test_no_real_hallucinated_caption_is_a_caption_or_adds_what_is_annotated(real):
    lexicon = default_lexicon()
    for rec, h in real[1]:
        assert same_text_key(h.text) not in {same_text_key(text) for text in rec.captions}
        if h.type == "insertion":
            added = lexicon.mentions(words_of(h.text[slice(*h.span)]))
            assert added and not {mention.kind.name for mention in added} & set(rec.objects or {}), h.text


def test_real_hallucinated_captions_differ_in_their_span_only(real):
    for rec, h in real[1]:
        start, end = h.span
        caption = rec.captions[h.of]
        assert caption.startswith(h.text[:start].rstrip()) and caption.endswith(h.text[end:])
        assert 0.7 <= len(words_of(h.text)) / len(words_of(caption)) <= 1.3
        assert not {" a a", " a o", " an b", "  a e"} & {f" {h.text[start:end].lower()}"[:4]}
