"""Promises of the comparison of runs: it pairs by image, tests what it says, corrects, and refuses other rulers."""

import json

import numpy as np
import pytest

from hacl.evaluation.compare_runs import compare, compare_files
from hacl.evaluation.paired_tests import holm, mcnemar, run_test, swap_test


def report(values, *, scorer="pope", options=None, inputs=None, items=None, more=None):
    tables = {"accuracy": {f"i{n}": [float(v), 1.0] for n, v in enumerate(values)}} | (more or {})
    meta = {"scorer": scorer, "version": 1, "options": options or {"parser": "official"}}
    meta["inputs"] = inputs or {"gold.jsonl": "a" * 64, f"answers{sum(values)}.jsonl": f"{sum(values)}"}
    return {"metrics": {"accuracy": float(np.mean(values))}, "meta": meta, "tables": tables, "items": items or []}


def noisy(rate, seed, images=300):
    return np.random.default_rng(seed).binomial(1, rate, images)


def test_mcnemar_has_the_exact_and_the_mid_p_of_the_discordant_items():
    found = mcnemar([True] * 10 + [False] * 2 + [True] * 50, [False] * 10 + [True] * 2 + [True] * 50)
    assert (found.only_a, found.only_b) == (10, 2)
    assert found.exact == pytest.approx(2 * 79 / 4096) and found.mid == pytest.approx((2 * 79 - 66) / 4096)
    assert mcnemar([True, False], [True, False]).exact == 1.0
    assert mcnemar([True, False], [False, True]).mid <= 1.0
    with pytest.raises(ValueError, match="same items"):
        mcnemar([True], [])


def test_holm_multiplies_by_what_is_left_and_never_decreases():
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None], nan_ok=True)
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_swap_test_is_rarely_fooled_and_sees_a_real_difference():
    rng = np.random.default_rng(0)
    p_values = []
    for trial in range(120):
        chance = rng.uniform(0.2, 0.9, 60)
        a, b = ({f"i{n}": (float(v), 6.0) for n, v in enumerate(rng.binomial(6, chance))} for _ in range(2))
        p_values.append(swap_test([a], [b], draws=200, seed=trial))
    assert np.mean(np.array(p_values) < 0.05) < 0.11
    better = {name: (min(6.0, top + 1), 6.0) for name, (top, _) in a.items()}
    assert swap_test([better], [a], draws=500) < 0.01
    assert swap_test([{"a": (0, 0)}], [{"a": (0, 0)}]) is None


def test_runs_that_disagree_are_a_second_source_of_chance():
    tables = [{"i": (value, 1.0)} for value in (0.5, 0.6, 0.7)]
    zero = [{"i": (0.5, 1.0)}] * 3
    assert run_test(tables, zero) == pytest.approx(0.2254033, abs=1e-6)
    assert run_test(tables[:1], zero[:1]) is None and run_test(tables[1:2] * 2, zero[:2]) == 0.0


def test_a_difference_is_called_larger_than_noise_only_if_it_is():
    same = compare(report(noisy(0.7, 3)), report(noisy(0.7, 7)))
    assert same.rows[0].verdict == "within noise" and "no difference larger than noise" in same.text()
    assert "same on every image" in compare(report(noisy(0.7, 3)), report(noisy(0.7, 3))).rows[0].sentence
    clear = compare(report(noisy(0.6, 0)), report(noisy(0.85, 1)))
    row = clear.rows[0]
    assert row.verdict == "higher" and "larger than noise" in row.sentence and row.p_holm < 0.05
    assert row.difference.low > 0 and row.mcnemar.only_b > row.mcnemar.only_a
    assert json.loads(json.dumps(clear.to_json()))["rows"][0]["verdict"] == "higher"


def test_what_one_measure_shows_may_be_chance_among_many():
    rng = np.random.default_rng(0)
    pairs = [{f"m{n}": {f"i{k}": [float(v), 1.0] for k, v in enumerate(rng.normal(0, 1, 80))} for n in range(20)}
             for _ in range(2)]  # fmt: skip
    base = noisy(0.6, 3)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:8]] = 1
    better[np.flatnonzero(base == 1)[:1]] = 0
    alone = compare(report(base), report(better)).rows[0]
    among = compare(report(base, more=pairs[0]), report(better, more=pairs[1])).rows[0]
    assert alone.verdict == "higher" and among.verdict == "suggestive" and "chance" in among.sentence


def test_mcnemar_counts_questions_where_items_say_which_were_right():
    def answered(right):
        items = [{"question_id": n, "image_id": f"i{n // 6}", "right": bool(v)} for n, v in enumerate(right)]
        more = {"accuracy": {f"i{n}": [float(sum(right[6 * n : 6 * n + 6])), 6.0] for n in range(len(right) // 6)}}
        return report([1], items=items, more=more)

    a, b = noisy(0.5, 0, 60), noisy(0.5, 1, 60)
    found = compare(answered(a), answered(b)).rows[0].mcnemar
    assert (found.only_a, found.only_b) == (int((a & ~b & 1).sum()), int((b & ~a & 1).sum()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"parser": "opera"}}, "option parser: official against opera"),
        ({"scorer": "chair"}, "scorer"),
        ({"inputs": {"gold.jsonl": "b" * 64, "answers.jsonl": "c"}}, "references: aaaaaaaaaaaa against bbbbbbbbbbbb"),
    ],
)
def test_other_parsers_scorers_and_references_are_refused_by_name(change, said):
    with pytest.raises(ValueError, match=said):
        compare(report([1, 0]), report([1, 1], **change))


def test_a_file_of_the_runs_own_nouns_does_not_stand_in_the_way():
    one = report([1, 0], options={"nouns": "a/nouns.jsonl"})
    other = report([1, 1], options={"nouns": "b/nouns.jsonl"})
    for side, folder in ((one, "a"), (other, "b")):
        side["meta"]["inputs"] = {f"{folder}/nouns.jsonl": folder} | side["meta"]["inputs"]
    assert compare(one, other).images == 2


def test_reports_without_evidence_or_common_images_are_refused():
    bare = report([1])
    del bare["tables"]
    with pytest.raises(ValueError, match="--tables"):
        compare(bare, bare)
    other = report([1], more={"accuracy": {"x": [1, 1]}})
    with pytest.raises(ValueError, match="no image in common"):
        compare(report([1]), other)


def test_pairs_of_runs_are_pooled_and_their_number_is_said():
    control = [report(noisy(0.6, seed)) for seed in range(3)]
    tuned = [report(noisy(0.8, seed)) for seed in range(10, 13)]
    found = compare(control, tuned, bases=[0, 1, 2])
    assert found.runs == 3 and found.rows[0].difference.runs == 3 and "six or more" in found.text()
    with pytest.raises(ValueError, match="in pairs"):
        compare(control, tuned[:2])


def test_files_are_compared_and_a_wrong_file_is_named(tmp_path):
    for name, rate in (("a.json", 0.6), ("b.json", 0.9)):
        (tmp_path / name).write_text(json.dumps(report([int(v) for v in noisy(rate, 1)])), encoding="utf-8")
    text = compare_files(tmp_path / "a.json", tmp_path / "b.json")
    assert "larger than noise" in text and "a.json" in text and "not over training seeds" in text
    with pytest.raises(FileNotFoundError, match=r"c\.json"):
        compare_files(tmp_path / "a.json", tmp_path / "c.json")
    (tmp_path / "d.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"d\.json:1"):
        compare_files(tmp_path / "a.json", tmp_path / "d.json")
