"""Promises of the edits that need a collection: denials, colours, values after "is", pictures, verbs after "to"."""

from hacl.data.records import Record
from hacl.hallucinate import LexicalHallucinator, make_hallucinator
from hacl.hallucinate.survey import Survey


def record(*captions, objects=None, id="1"):
    return Record(id, ("a.jpg",), id, captions, objects=objects)


def texts(rec, kind):
    return {made.text for made in LexicalHallucinator(types=[kind]).propose(rec, 0, 400)}


def surveyed(rec, kind, *more, k=400, index=0):
    """Every hallucinated caption of one type where the collection has some more captions."""
    survey = Survey()
    for row in (rec, *(record(text, id=f"more-{n}") for n, text in enumerate(more))):
        survey.add(row)
    return {made.text for made in make_hallucinator("lexical", survey=survey, types=[kind]).propose(rec, index, k)}


def test_the_last_of_several_things_is_denied_and_no_part_of_a_compound_is():
    said = "A kitchen with a stove and a sink in it."
    assert "A kitchen with a stove but no sink in it." in surveyed(record(said), "relation", "A dog near a stove.")
    for text in ("A man with a red and white kite.", "A man with a dog and reading a book.", "A man and a dog run."):
        assert not any("but no" in made for made in surveyed(record(text), "relation", "A bird on a kite."))


def test_one_of_two_colours_changes_and_black_and_white_stays_whole():
    found = surveyed(record("A red and white kite in the sky."), "attribute")
    assert "A green and white kite in the sky." in found and "A red and green kite in the sky." in found
    assert not any("white and white" in text or "pink" in text for text in found)
    assert not any("kite" in text for text in surveyed(record("A black and white kite."), "attribute"))


def test_what_a_caption_says_a_thing_is_changes():
    found = surveyed(record("The door is open and the wall is red."), "attribute")
    assert "The door is closed and the wall is red." in found and "The door is open and the wall is blue." in found
    assert "A room that is very tidy." not in surveyed(record("A room that is messy people."), "attribute")
    assert "A very tidy room." in surveyed(record("A very messy room."), "attribute")


def test_a_picture_may_be_of_what_another_caption_shows():
    other = "A picture of a dog chewing on some shoes."
    found = surveyed(record("A photo of a bus on a city street.", objects={"bus": 1}), "other", other)
    assert "A photo of a dog chewing on some shoes." in found
    shown = record("There are two buses on a city street.", objects={"bus": 2})
    assert surveyed(shown, "other", other) == set()
    assert surveyed(shown, "other", "a photo of two dogs chewing on some shoes") == {
        "There are two dogs chewing on some shoes."
    }


def test_a_verb_after_to_becomes_another():
    throwing = record("A man about to throw a ball.", objects={"person": 1})
    assert texts(throwing, "action") == {"A man about to catch a ball."}


def test_a_value_that_another_caption_names_is_contradicted_and_never_repeated():
    plates = texts(record("A plate on a table.", "A white plate and a red plate on a table."), "attribute")
    assert {"A blue plate on a table.", "An orange plate on a table."} <= plates
    assert not any("white" in text or "red plate" in text for text in plates)
    assert texts(record("A plate on a table.", "Food on a table."), "attribute") == set()


def test_people_become_children_only_where_others_tell_of_grown_ones():
    grown = ("A man and a woman in a park.", "Some men stand in a park.")
    made = texts(record("People in a park.", "Two women walk in a park.", *grown), "attribute")
    assert made == {"Children in a park."}
    assert texts(record("People in a park.", "Two women walk with children.", *grown), "attribute") == set()


def test_a_number_is_larger_than_any_that_another_caption_counts():
    made = texts(record("Some dogs on grass.", "Two dogs on grass."), "number")
    assert made == {"Three dogs on grass.", "Four dogs on grass.", "Five dogs on grass."}


def test_a_place_told_by_a_pronoun_changes():
    assert "A table with a lamp under it." in texts(record("A table with a lamp on it."), "relation")
