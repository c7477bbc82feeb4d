"""Promises of the offline world: exact ground truth, laws of co-occurrence, hallucinated captions that are false."""

import json
import random
import re

import numpy as np
import pytest

from hacl.data.records import read_records
from hacl.pocket.benchmarks import write_benchmarks
from hacl.pocket.build import caption_record
from hacl.pocket.draw import draw_scene
from hacl.pocket.hallucinate import TYPES, hallucinate, hallucinations
from hacl.pocket.language import describe, questions, read_grid, retell
from hacl.pocket.scenes import GRID, IMAGE_SIZE, SPLITS, sample_scene, scene_from_json
from hacl.pocket.world import BACKGROUNDS, COLOURS, KINDS, NUMBERS, PARTNER, object_vocabulary

NOUNS = object_vocabulary()
PLURALS = {plural for kind in KINDS for _, plural in kind.words}
_RELATION = re.compile(r"the (\w+) is (left of|right of|above|below) the (\w+)")


def claims_of(text):
    """Read a caption back, independently of the code that wrote it: {kind: (count, colour)} and relations."""
    listed, relations = {}, _RELATION.findall(text)
    words = _RELATION.sub("", text).replace(",", " ").replace(".", " ").split()
    for position, word in enumerate(words):
        if word not in NOUNS:
            continue
        before = words[position - 1]
        colour = before if before in COLOURS else None
        number = words[position - 2] if colour else before
        count = 1 if number in ("a", "an") else NUMBERS.index(number)
        assert (word in PLURALS) == (count > 1), text
        listed[NOUNS[word]] = (count, colour)
    return listed, [(NOUNS[first], name, NOUNS[second]) for first, name, second in relations]


def true_by_reading(text, scene):
    listed, relations = claims_of(text)
    for kind, (count, colour) in listed.items():
        if scene.counts.get(kind) != count or (colour and scene.colour_of(kind) != colour):
            return False
    for first, name, second in relations:
        if scene.counts.get(first) != 1 or scene.counts.get(second) != 1 or not scene.holds(first, name, second):
            return False
    return True


def scenes(split, count, seed=0):
    return [sample_scene(split, index, seed) for index in range(count)]


def test_a_scene_depends_on_seed_split_and_index_only():
    first = sample_scene("train", 7, 3)
    sample_scene("val_like", 1, 9)
    assert sample_scene("train", 7, 3) == first
    assert sample_scene("train", 7, 4) != first and sample_scene("val_like", 7, 3) != first
    assert scene_from_json(first.id, first.to_json()) == first


def test_no_two_things_share_a_cell_and_every_kind_has_one_colour():
    for scene in scenes("train", 200) + scenes("val_broken", 200):
        cells = [(thing.row, thing.column) for thing in scene.things]
        assert len(set(cells)) == len(cells)
        assert all(len({t.colour for t in scene.things if t.kind == kind}) == 1 for kind in scene.counts)


def test_the_drawing_shows_each_thing_in_its_cell_and_nothing_elsewhere():
    for scene in scenes("train", 50):
        pixels = np.asarray(draw_scene(scene)).astype(int)
        changed = np.abs(pixels - np.array(BACKGROUNDS[scene.background])).max(-1) > 8
        side = IMAGE_SIZE // GRID
        occupied = {(thing.row, thing.column) for thing in scene.things}
        for row in range(GRID):
            for column in range(GRID):
                cell = changed[row * side : (row + 1) * side, column * side : (column + 1) * side]
                inner = cell[6:-6, 6:-6].mean()
                assert (inner > 0.05) == ((row, column) in occupied), scene.id
        assert (np.asarray(draw_scene(scene)) == pixels).all()


def test_partners_are_present_nine_times_in_ten_in_training_and_never_in_the_broken_splits():
    def rate(split):
        together = total = 0
        for scene in scenes(split, 1500):
            for kind in scene.counts:
                total += 1
                together += PARTNER[kind] in scene.counts
        return together / total

    assert rate("train") == pytest.approx(0.9, abs=0.015)
    assert rate("val_like") == pytest.approx(0.9, abs=0.015)
    assert rate("test_broken") == 0
    assert 0.03 < rate("val_independent") < 0.2


def test_the_laws_differ_in_partners_only_and_not_in_the_number_of_kinds():
    means = {split: np.mean([len(s.counts) for s in scenes(split, 1500)]) for split in SPLITS}
    assert max(means.values()) - min(means.values()) < 0.2, means


def test_captions_are_true_by_the_scene_and_by_reading_them_back():
    rng = random.Random(0)
    for scene in scenes("train", 300):
        for caption in (describe(scene, rng), retell(scene, rng)):
            assert caption.true_of(scene)
            assert true_by_reading(caption.render(), scene), caption.render()


def test_captions_of_one_kind_name_every_colour_and_place_or_none():
    for index in range(60):
        scene = sample_scene("train", index, 0)
        plain = describe(scene, random.Random(index), coloured=0, placed=0)
        assert all(m.colour is None for m in plain.mentions) and plain.relation is None
        full = describe(scene, random.Random(index), coloured=1, placed=1)
        assert all(m.colour for m in full.mentions) and full.true_of(scene)
    record = caption_record(scene, captions=2, seed=0, style={"coloured": 0, "placed": 0})
    assert not set(" ".join(record.captions).split()) & {*COLOURS, "left", "right", "above", "below"}


def test_a_retelling_leaves_out_no_object():
    rng = random.Random(0)
    for scene in scenes("train", 50):
        assert set(claims_of(retell(scene, rng).render())[0]) == set(scene.counts)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("split", ["train", "val_broken"])
def test_hallucinated_captions_are_never_true(kind, split):
    rng = random.Random(1)
    made = 0
    for scene in scenes(split, 300):
        caption = describe(scene, rng)
        found = hallucinate(scene, caption, kind, rng)
        if found is None:
            continue
        made += 1
        start, end = found.span
        assert found.type == kind and found.text != caption.render()
        assert not true_by_reading(found.text, scene), (caption.render(), found.text)
        assert 0 <= start < end <= len(found.text) and found.text[start:end].strip() == found.text[start:end]
    assert made > 60


def test_object_hallucinations_name_an_absent_partner_wherever_there_is_one():
    rng = random.Random(2)
    for scene in scenes("val_broken", 200):
        for kind in ("object", "insertion"):
            found = hallucinate(scene, describe(scene, rng), kind, rng)
            word = next(w for w in found.text[slice(*found.span)].split() if w in NOUNS)
            assert PARTNER[NOUNS[word]] in scene.counts and NOUNS[word] not in scene.counts


def test_hallucinated_captions_stay_close_in_length():
    rng = random.Random(3)
    for scene in scenes("train", 200):
        caption = describe(scene, rng)
        for found in hallucinations(scene, caption, TYPES, rng):
            change = len(found.text.split()) - len(caption.render().split())
            assert 1 <= change <= 5 if found.type == "insertion" else change == 0


def test_questions_are_answered_by_ground_truth_and_yes_is_right_half_of_the_time():
    rng = random.Random(4)
    answers, seen = [], set()
    for scene in scenes("train", 500):
        for question, answer in questions(scene, 4, rng):
            if answer in ("yes", "no"):
                answers.append(answer == "yes")
            if match := re.fullmatch(r"is there an? (\w+)( in the image)? \?", question):
                assert (NOUNS[match[1]] in scene.counts) == (answer == "yes")
                seen.add("existence")
            elif match := re.fullmatch(r"is there an? (\w+) or an? (\w+) \?", question):
                assert [noun for noun in match.groups() if noun in scene.counts] == [answer]
                seen.add("one or the other")
            elif match := re.fullmatch(r"what color (?:is|are) the (\w+) \?", question):
                assert scene.colour_of(NOUNS[match[1]]) == answer
                seen.add("colour")
            elif match := re.fullmatch(r"how many (\w+) are there \?", question):
                assert NUMBERS[scene.counts.get(NOUNS[match[1]], 0)] == answer
                seen.add("number")
            elif match := re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+) \?", question):
                assert scene.holds(NOUNS[match[1]], match[2], NOUNS[match[3]]) == (answer == "yes")
                seen.add("relation")
    assert np.mean(answers) == pytest.approx(0.5, abs=0.05)
    assert seen == {"existence", "one or the other", "colour", "number", "relation"}


def test_the_grid_is_read_cell_by_cell():
    scene = sample_scene("train", 0, 0)
    cells = {(thing.row, thing.column): thing for thing in scene.things}
    words = iter(read_grid(scene).split())
    for row in range(GRID):
        for column in range(GRID):
            thing = cells.get((row, column))
            assert next(words) == (thing.colour if thing else "nothing")
            assert thing is None or next(words) == thing.kind
    assert next(words, None) is None


def test_relations_of_things_that_are_there_twice_are_refused():
    scene = next(s for s in scenes("train", 100) if max(s.counts.values()) > 1)
    twice = max(scene.counts, key=scene.counts.get)
    with pytest.raises(ValueError, match="must be once"):
        scene.holds(twice, "above", next(kind for kind in scene.counts if kind != twice))


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="val_brokn.*val_broken"):
        sample_scene("val_brokn", 0, 0)


def test_held_out_scenes_become_benchmarks_of_the_runner(tmp_path):
    folder = write_benchmarks(tmp_path, "test_broken", 4, seed=3, questions=2)
    records = read_records(folder / "chair/records.jsonl")
    assert len(records) == 4 and (folder / "caption_margin/records.jsonl").is_file()
    assert set(json.loads((folder / "chair/vocabulary.json").read_text()).values()) == {kind.name for kind in KINDS}
    for split in ("random", "popular", "adversarial"):
        rows = [json.loads(line) for line in (folder / f"pope/scenes_pope_{split}.json").read_text().splitlines()]
        assert {row["image"] for row in rows} == {f"{record.image_id}.png" for record in records[:2]}
        assert sum(row["label"] == "yes" for row in rows) * 2 == len(rows) > 0
        assert all((folder / "images" / row["image"]).is_file() for row in rows)
