"""Promises of the array measures: a planted gap, margin, shift or linear map is found, and its absence too."""

import numpy as np
import pytest

from hacl.evaluation.controls import controls, derangement, paraphrase_states, text_probe
from hacl.evaluation.diagnostics import (
    States,
    bootstrap_images,
    entanglement,
    gap_distances,
    modality_gap,
    view,
)
from hacl.evaluation.projection import SharedProjection
from hacl.evaluation.retrieval import retrieval
from hacl.evaluation.ridge import fit_ridge
from hacl.evaluation.separation import energy_distance, other_label_share, probe_auc, probe_folds, probe_interval


def make_states(gap=0.0, margin=0.0, style=0.0, noise=0.3, images=60, width=24, captions=2, seed=0):
    """Images and captions share a content vector; `gap` moves text as a whole, `margin` moves hallucinated captions off
    their image's content, `style` moves all hallucinated captions along one direction that images do not have."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(images, width))
    content[:, :2] = 0
    image = content + noise * rng.normal(size=content.shape)
    owner = np.repeat(np.arange(images), captions)
    true = content[owner] + noise * rng.normal(size=(len(owner), width))
    false = (1 - margin) * content[owner] + noise * rng.normal(size=true.shape)
    true[:, 0] += gap
    false[:, 0] += gap
    false[:, 1] += style
    rows = np.arange(len(owner))
    types = tuple("object" if i % 2 else "attribute" for i in rows)
    return States(image, true, false, owner, owner, rows, types, tuple(f"i{n}" for n in range(images)))


def test_a_planted_gap_is_found_and_grows():
    none, small, large = (modality_gap(make_states(gap=g)).metrics for g in (0, 3, 12))
    assert none["relative_gap"] < small["relative_gap"] < large["relative_gap"]
    assert none["modality_auc"] == pytest.approx(0.5, abs=0.15) and large["modality_auc"] > 0.99
    assert none["cosine_difference"] > 0.5 > large["cosine_difference"]


def test_centring_takes_the_gap_out_and_leaves_the_matching():
    states = make_states(gap=30)
    raw, centred, whitened = (modality_gap(view(states, name)).metrics for name in ("raw", "centred", "whitened"))
    assert raw["centroid_distance"] > 0.9
    assert centred["centroid_distance"] < 0.1 and whitened["centroid_distance"] < 0.1
    assert centred["i2t@1"] > 0.9 and whitened["i2t@1"] > 0.9


def test_whitening_undoes_a_huge_dimension_that_hides_the_match():
    states = make_states()
    for rows in (states.image, states.true, states.hallucinated):
        rows[:, 5] = 100 + 20 * np.random.default_rng(len(rows)).normal(size=len(rows))
    raw, whitened = gap_distances(view(states, "raw")), gap_distances(view(states, "whitened"))
    assert raw["unmatched_cosine"] > 0.9 and abs(whitened["unmatched_cosine"]) < 0.1
    assert raw["cosine_difference"] < 0.05 and whitened["cosine_difference"] > 0.5


def test_a_planted_margin_is_found_in_every_type_and_its_absence_is_chance():
    with_margin, without = entanglement(make_states(margin=1.0)), entanglement(make_states())
    assert with_margin.metrics["state_margin_accuracy"] > 0.95
    assert all(with_margin.metrics[f"state_margin_accuracy/{kind}"] > 0.95 for kind in ("object", "attribute"))
    assert without.metrics["state_margin_accuracy"] == pytest.approx(0.5, abs=0.15)
    assert with_margin.metrics["shift"] > without.metrics["shift"]


def test_style_moves_the_probe_but_not_the_margin():
    report = entanglement(make_states(style=3.0))
    assert report.metrics["probe_auc"] > 0.95
    assert entanglement(make_states()).metrics["probe_auc"] == pytest.approx(0.5, abs=0.15)
    report = entanglement(make_states(style=0.2))
    assert report.metrics["state_margin_accuracy"] == pytest.approx(0.5, abs=0.2)


def test_paraphrases_give_the_scale_of_a_harmless_shift():
    assert entanglement(make_states(captions=1)).metrics["paraphrase_shift"] is None
    assert 0 < entanglement(make_states(noise=0.1)).metrics["paraphrase_shift"] < 0.3


def test_the_probe_cannot_use_rows_of_a_group_it_was_fitted_on():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    labels = np.repeat(rng.integers(0, 2, 30), 4)
    x = np.eye(30)[groups] + 0.01 * rng.normal(size=(120, 30))
    assert probe_auc(x, labels, groups) == pytest.approx(0.5, abs=0.3)
    assert probe_auc(x, labels, np.zeros(120)) is None


def test_neighbours_are_of_the_same_kind_where_kinds_are_apart_and_of_both_where_they_mix():
    rng = np.random.default_rng(0)
    x, labels, groups = rng.normal(size=(200, 8)), np.repeat([0, 1], 100), np.tile(np.arange(100), 2)
    assert other_label_share(x, labels, groups).mean() == pytest.approx(0.5, abs=0.06)
    apart = x + np.array([50.0] + [0.0] * 7) * (2 * labels[:, None] - 1)
    assert other_label_share(apart, labels, groups).max() == 0
    assert np.isnan(other_label_share(x[:2], labels[:2], np.zeros(2))).all()


def test_a_pair_is_never_its_own_neighbour():
    x = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]])
    shares = other_label_share(x, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), neighbours=1)
    assert shares.tolist() == [1, 0, 1, 0]


def test_the_energy_distance_sees_a_shift_and_its_p_is_fair_without_one():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, 6))
    distance, p = energy_distance(a, a + 1.0, permutations=199)
    assert distance > 0.1 and p == pytest.approx(1 / 200)
    fair = [energy_distance(*rng.normal(size=(2, 30, 4)), permutations=99, seed=s)[1] for s in range(60)]
    assert np.mean(np.array(fair) <= 0.05) < 0.14 and np.median(fair) > 0.3
    assert energy_distance(a[:1] * 0, a[:1] * 0)[1] == 1.0


def test_the_energy_distance_is_its_definition():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 9, 3))
    d = [np.linalg.norm(x[:, None] - y[None], axis=-1).mean() for x, y in ((a, b), (a, a), (b, b))]
    assert energy_distance(a, b, permutations=1)[0] == pytest.approx((2 * d[0] - d[1] - d[2]) / (2 * d[0]))


def test_the_interval_of_a_probe_holds_its_auc_and_ties_count_half():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat([0.0, 1.0], 100), np.tile(np.arange(100), 2)
    x = rng.normal(size=(200, 3)) + labels[:, None]
    folds = probe_folds(x, labels, groups)
    low, high = probe_interval(folds, labels, groups, draws=100)
    assert 0.5 < low < probe_auc(x, labels, groups) < high < 1
    from sklearn.metrics import roc_auc_score

    expected = np.mean([roc_auc_score(labels[rows], scores) for rows, scores in folds])
    assert probe_auc(x, labels, groups) == pytest.approx(expected)
    assert probe_auc(np.zeros((200, 1)), labels, groups) == 0.5


def test_a_margin_from_the_image_vanishes_when_images_are_shuffled():
    seen = controls(make_states(margin=1.0), probe=False).metrics
    assert seen["state_margin_accuracy_shuffled"] == pytest.approx(0.5, abs=0.15) and seen["state_margin_gain"] > 0.3
    assert seen["state_margin_accuracy_paraphrase"] > 0.9
    assert seen["margin_size"] > 2 * seen["margin_size_paraphrase"] and seen["shift_beyond_paraphrase"] > 0.9
    order = derangement(20, 0)
    assert sorted(order) == list(range(20)) and (order != np.arange(20)).all()


def test_paraphrases_in_the_place_of_hallucinations_show_nothing_to_find():
    states = make_states(style=3.0, images=80)
    found, pairs = controls(states).metrics, entanglement(states).metrics
    assert pairs["probe_auc"] > 0.95 > 0.65 > found["probe_auc_paraphrase"]
    assert pairs["energy_p"] < 0.05 < found["energy_p_paraphrase"]
    assert pairs["knn_mixing"] < found["knn_mixing_paraphrase"] == pytest.approx(0.5, abs=0.1)
    pair = paraphrase_states(states)
    assert len(pair.true) == 80 and (pair.true != pair.hallucinated).any(axis=1).all()
    assert "state_margin_accuracy_paraphrase" not in controls(make_states(captions=1)).metrics


def test_words_that_only_hallucinated_captions_use_give_them_away():
    true = [f"a {thing} on a table" for thing in ("cup", "dog", "cat", "hat", "car") * 8]
    false = [text.replace("table", "purple table") for text in true]
    groups = [*range(40), *range(40)]
    assert text_probe(true, false, groups).metrics["text_probe_auc"] > 0.95
    same = text_probe(true, true, groups, draws=50)
    assert same.metrics["text_probe_auc"] == pytest.approx(0.5, abs=0.05) and same.intervals["text_probe_auc"]


def test_the_interval_over_images_holds_the_estimate_and_narrows_with_images():
    def gap(states):
        return {"gap": gap_distances(states)["centroid_distance"]}

    widths = []
    for images in (20, 200):
        states = make_states(gap=2, images=images, captions=1)
        low, high = bootstrap_images(states, gap, draws=60)["gap"]
        assert low <= gap(states)["gap"] + 0.15 and high >= gap(states)["gap"] - 0.05
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_panels_of_one_projection_share_their_axes_and_limits():
    before, after = make_states(gap=8), make_states(gap=0)
    projection = SharedProjection([before, after])
    panels = [projection.panel(before, "before", limit=30), projection.panel(after, "after", limit=30)]
    assert all(len(panel["points"]["image"]) == 30 for panel in panels)
    assert panels[0]["explained"] == panels[1]["explained"] and 0 < sum(panels[0]["explained"]) <= 1
    again = projection(before.image)
    assert np.allclose(again, SharedProjection([before, after])(before.image))
    with pytest.raises(ValueError, match="widths"):
        SharedProjection([before, make_states(width=8)])


def test_recall_counts_the_nearest_and_ties_against():
    image = np.eye(3)
    text = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [1, 0, 0.5]])
    report = retrieval(image, text, [0, 0, 1, 2], ks=(1, 2), image_ids=["a", "b", "c"])
    assert report.metrics["i2t@1"] == 1.0 and report.metrics["t2i@1"] == 3 / 4 and report.metrics["t2i@2"] == 1.0
    assert report.by_image()["t2i@1"] == {"a": [2, 2], "b": [1, 1], "c": [0, 1]}
    same = retrieval(np.ones((4, 2)), np.ones((4, 2)), range(4), ks=(1,))
    assert same.metrics == {"i2t@1": 0.0, "t2i@1": 0.0}


def test_retrieval_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="fit"):
        retrieval(np.eye(3), np.eye(4), range(4))
    with pytest.raises(ValueError, match="row 7"):
        retrieval(np.eye(3), np.eye(3), [0, 1, 7])


def test_ridge_recovers_a_planted_map_and_picks_strength_on_validation():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(20, 6))
    x = rng.normal(size=(300, 20))
    y = x @ weight + 5.0
    clean = fit_ridge(x[:200], y[:200], x[200:], y[200:])
    assert np.allclose(clean.predict(x[200:]), y[200:], atol=0.05) and clean.alpha == min(clean.scores)
    noisy = y + 30 * rng.normal(size=y.shape)
    strong = fit_ridge(x[:30], noisy[:30], x[200:], noisy[200:])
    assert strong.alpha > clean.alpha


def test_ridge_is_the_closed_form():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(15, 40)), rng.normal(size=(15, 3))
    model = fit_ridge(x, y, x, y, alphas=[0.5])
    centred = x - x.mean(axis=0)
    scale = 0.5 * (np.linalg.svd(centred, compute_uv=False) ** 2).mean()
    direct = np.linalg.solve(centred.T @ centred + scale * np.eye(40), centred.T @ (y - y.mean(axis=0)))
    assert np.allclose(model.weight, direct, atol=1e-8)
