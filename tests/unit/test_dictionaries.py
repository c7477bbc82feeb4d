"""Promises about concept dictionaries, their stability over seeds, and matching between models."""

from __future__ import annotations

import itertools
import json
import pickletools

import numpy as np
import pytest
from scipy.optimize import nnls

from hacl.representations.dictionaries import METHODS, Dictionary
from hacl.representations.matching import cosines, match_concepts
from hacl.representations.semi_nmf import fit_semi_nmf, nonnegative_projection
from hacl.representations.stability import partition_agreement, stability
from tests.reference.planted_shift import planted_shift


def rows(seed: int = 0, n: int = 120, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)) + 0.5


def input_of(method: str) -> np.ndarray:
    return np.abs(rows()) if method == "nmf" else rows()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_concepts_at_the_scale_of_the_input(method):
    x_ND = input_of(method)
    first, second = (Dictionary.fit(x_ND, 4, method, seed=3, iterations=200) for _ in range(2))
    assert np.array_equal(first.concepts_KD, second.concepts_KD)
    assert first.concepts_KD.shape == (4, 12) and first.activations(x_ND).shape == (120, 4)
    assert first.params["seed"] == 3 and first.sizes(x_ND).sum() == 120


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_dictionary_comes_back_as_it_was_without_pickle(method, tmp_path):
    x_ND = input_of(method)
    made = Dictionary.fit(x_ND, 4, method, iterations=200, provenance={"model": "abc", "layer": "3"})
    found = Dictionary.load(made.save(tmp_path), model="abc", layer="3")
    assert np.array_equal(found.concepts_KD, made.concepts_KD)
    assert np.array_equal(found.activations(x_ND), made.activations(x_ND))
    assert np.array_equal(found.assign(x_ND), made.assign(x_ND)) and found.fit_error == made.fit_error
    for path in tmp_path.iterdir():
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(path.read_bytes()))


def test_a_dictionary_of_another_model_or_with_damaged_arrays_is_refused(tmp_path):
    made = Dictionary.fit(rows(), 3, provenance={"model": "abc"})
    made.save(tmp_path)
    with pytest.raises(ValueError, match="made for model 'abc', asked for 'xyz'"):
        Dictionary.load(tmp_path, model="xyz")
    content = (tmp_path / "dictionary.safetensors").read_bytes()
    (tmp_path / "dictionary.safetensors").write_bytes(content[:-8] + bytes(8))
    with pytest.raises(ValueError, match="not what dictionary.json describes"):
        Dictionary.load(tmp_path)
    (tmp_path / "dictionary.json").unlink()
    with pytest.raises(FileNotFoundError, match="dictionary.json"):
        Dictionary.load(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_k_means_finds_planted_concepts_and_its_centres_are_means_of_their_members(seed):
    planted = planted_shift(seed)
    made = Dictionary.fit(planted.a_ND, 6, seed=seed)
    assigned_N = made.assign(planted.a_ND)
    assert partition_agreement(assigned_N, planted.label_N) == 1.0
    for k in range(6):
        assert np.abs(made.concepts_KD[k] - planted.a_ND[assigned_N == k].mean(axis=0)).max() < 1e-10
    inside = ((planted.a_ND - made.concepts_KD[assigned_N]) ** 2).sum()
    assert made.fit_error == pytest.approx(inside / ((planted.a_ND - planted.a_ND.mean(axis=0)) ** 2).sum(), rel=1e-9)


def test_mini_batches_are_used_above_the_threshold_and_find_the_same_partition():
    planted = planted_shift(0)
    made = Dictionary.fit(planted.a_ND, 6, minibatch_above=500)
    assert made.params["minibatch"] and not Dictionary.fit(planted.a_ND, 6).params["minibatch"]
    assert partition_agreement(made.assign(planted.a_ND), planted.label_N) == 1.0


def test_centred_unit_rows_are_clustered_by_direction_and_concepts_stay_in_the_input_space():
    rng = np.random.default_rng(0)
    direction_KD = np.array([[1.0, 0.3, 0.0], [1.0, -0.3, 0.0]])
    label_N = np.repeat([0, 1], 100)
    length_N1 = rng.choice([-1, 1], size=(200, 1)) * rng.uniform(1, 20, size=(200, 1))
    x_ND = 30 + direction_KD[label_N] * length_N1 + 0.02 * rng.normal(size=(200, 3))
    made = Dictionary.fit(x_ND, 4, center=True, normalize=True)
    side_N = 2 * label_N + (length_N1[:, 0] > 0)
    assert partition_agreement(made.assign(x_ND), side_N) > 0.95
    assert partition_agreement(Dictionary.fit(x_ND, 4).assign(x_ND), side_N) < 0.6
    for k in range(4):
        assert np.abs(made.concepts_KD[k] - x_ND[made.assign(x_ND) == k].mean(axis=0)).max() < 1e-10


def test_activations_of_k_means_are_inverse_distances_or_a_softmax_of_their_squares():
    made = Dictionary(np.array([[0.0, 0.0], [3.0, 4.0]]), "kmeans", {"normalize": False})
    assert made.activations(np.zeros((1, 2))) == pytest.approx(np.array([[1.0, 1 / 6]]))
    weights = np.exp([0.0, -25.0 / 5.0])
    assert made.activations(np.zeros((1, 2)), temperature=5.0)[0] == pytest.approx(weights / weights.sum())
    with pytest.raises(ValueError, match="no distances"):
        Dictionary.fit(rows(), 2, "pca").activations(rows(), temperature=1.0)


def test_the_simple_baseline_takes_the_longest_rows():
    x_ND = rows()
    longest = np.argsort(-np.linalg.norm(x_ND, axis=1))[:3]
    assert np.array_equal(Dictionary.fit(x_ND, 3, "simple").concepts_KD, x_ND[longest])


@pytest.mark.parametrize("method", ["pca", "svd"])
def test_principal_directions_equal_a_dense_svd_with_a_fixed_sign(method):
    x_ND = rows()
    made = Dictionary.fit(x_ND, 5, method)
    mean_D = x_ND.mean(axis=0) if method == "pca" else 0.0
    _, _, right = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    assert np.abs(np.abs(cosines(made.concepts_KD, right[:5]).diagonal()) - 1).max() < 1e-10
    assert (made.concepts_KD[np.arange(5), np.abs(made.concepts_KD).argmax(axis=1)] > 0).all()
    flipped = Dictionary.fit(-x_ND, 5, method)
    assert np.abs(flipped.concepts_KD - made.concepts_KD).max() < 1e-8
    assert np.array_equal(made.assign(x_ND), np.abs(made.activations(x_ND)).argmax(axis=1))
    if method == "pca":
        assert np.abs(made.activations(x_ND.mean(axis=0)[None])).max() < 1e-12


def test_the_randomised_svd_of_large_inputs_agrees_with_the_dense_one(monkeypatch):
    x_ND = planted_shift(0).a_ND
    dense = Dictionary.fit(x_ND, 5, "svd")
    monkeypatch.setattr("hacl.representations.row_algebra.DENSE", 10)
    assert np.abs(Dictionary.fit(x_ND, 5, "svd").concepts_KD - dense.concepts_KD).max() < 1e-4


def test_non_negative_codes_equal_the_library_solvers():
    x_ND = rows(width=6)
    atoms_KD = np.random.default_rng(1).normal(size=(4, 6))
    expected = np.array([nnls(atoms_KD.T, row)[0] for row in x_ND])
    assert np.abs(nonnegative_projection(x_ND, atoms_KD) - expected).max() < 1e-10
    repeated = np.vstack([atoms_KD, atoms_KD[:1]])  # a dictionary with an atom twice
    again = nonnegative_projection(x_ND, repeated) @ repeated
    assert np.abs(again - expected @ atoms_KD).max() < 1e-8


def test_sparse_codes_equal_those_of_the_estimator_that_learnt_them():
    from sklearn.decomposition import DictionaryLearning

    x_ND = rows(n=60)
    made = Dictionary.fit(x_ND, 4, "sparse_pos", iterations=50, alpha=0.5)
    learner = DictionaryLearning(
        4,
        alpha=0.5,
        max_iter=50,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        positive_code=True,
        random_state=0,
    ).fit(x_ND)
    assert np.abs(made.activations(x_ND) - learner.transform(x_ND)).max() < 1e-10
    assert (made.activations(x_ND) >= 0).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("l1", [0.0, 0.5])
def test_the_objective_of_semi_nmf_never_rises_and_activations_stay_non_negative(seed, l1):
    x_ND = rows(seed, 80, 10) - 0.5
    found = fit_semi_nmf(x_ND, 4, seed=seed, iterations=150, tolerance=0.0, l1=l1)
    objective = np.array(found.objective)
    assert len(objective) > 100 and objective[-1] < objective[0]
    assert (np.diff(objective) <= 1e-9 * objective[:-1]).all()
    assert (found.activations_NK >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_semi_nmf_finds_atoms_that_some_rows_carry_alone(seed):
    rng = np.random.default_rng(seed)
    atoms_KD = rng.normal(size=(5, 40))
    codes_NK = np.vstack([rng.gamma(1.0, 1.0, size=(300, 5)), np.repeat(np.eye(5), 60, axis=0) * 3])
    x_ND = codes_NK @ atoms_KD + 0.05 * rng.normal(size=(600, 40))
    found = fit_semi_nmf(x_ND, 5, seed=seed, iterations=300)
    matched = match_concepts(atoms_KD, found.atoms_KD)
    assert min(match.cosine for match in matched) >= 0.97
    assert np.array_equal(found.atoms_KD, fit_semi_nmf(x_ND, 5, seed=seed, iterations=300).atoms_KD)


def test_unit_atoms_move_their_length_into_the_activations_and_a_penalty_makes_codes_sparser():
    x_ND = rows()
    plain, unit = (fit_semi_nmf(x_ND, 4, unit_norm=flag) for flag in (False, True))
    assert np.linalg.norm(unit.atoms_KD, axis=1) == pytest.approx(np.ones(4))
    assert np.abs(unit.activations_NK @ unit.atoms_KD - plain.activations_NK @ plain.atoms_KD).max() < 1e-10
    heavy = fit_semi_nmf(x_ND, 4, l1=5.0, unit_norm=True)
    assert heavy.activations_NK.sum() < 0.9 * unit.activations_NK.sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "k-means"}, "known: kmeans"),
        ({"K": 500}, "N >= K >= 1"),
        ({"method": "nmf"}, "needs input >= 0"),
        ({"method": "pca", "K": 13}, "at most as many as the width"),
        ({"method": "pca", "normalize": True}, "belong to kmeans and simple"),
        ({"l1": 1.0}, "belong to semi_nmf"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Dictionary.fit(rows() - 1, **{"K": 3, **change})


def test_rows_that_are_not_finite_or_of_another_width_are_named():
    x_ND = rows()
    x_ND[7, 2] = np.nan
    with pytest.raises(ValueError, match="row 7 is not finite"):
        Dictionary.fit(x_ND, 3)
    with pytest.raises(ValueError, match=r"reads \(N, 12\)"):
        Dictionary.fit(rows(), 3).activations(np.zeros((2, 5)))


def test_stability_is_perfect_for_separated_concepts_and_low_for_noise():
    planted = stability(planted_shift(0, per_concept=40).a_ND, 6, seeds=(0, 1, 2))
    noise = stability(rows(n=200), 6, seeds=(0, 1, 2), n_init=1)
    assert planted.to_json()["adjusted_rand_index"]["least"] == 1.0
    assert planted.to_json()["matched_cosine"]["mean"] == pytest.approx(1.0)
    assert noise.to_json()["adjusted_rand_index"]["mean"] < 0.7 and len(noise.agreements) == 3
    json.dumps(noise.to_json(), allow_nan=False)
    with pytest.raises(ValueError, match="two different"):
        stability(rows(), 3, seeds=(1, 1))


def test_matching_finds_a_planted_permutation_and_shows_the_margin():
    u_KD = np.random.default_rng(0).normal(size=(6, 20))
    order = np.array([3, 0, 5, 1, 2, 4])
    matches = match_concepts(u_KD, u_KD[order] * 2.5)
    assert [order[match.b] for match in matches] == list(range(6))
    table = cosines(u_KD, u_KD[order])
    for match in matches:
        assert match.cosine == pytest.approx(1.0)
        assert match.margin == pytest.approx(1.0 - np.delete(table[match.a], match.b).max())
        assert not match.low


@pytest.mark.parametrize(("K", "J"), [(4, 4), (3, 6), (6, 3), (1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_the_best_of_all_permutations(K, J, seed):
    rng = np.random.default_rng(seed)
    u_KD, v_JD = rng.normal(size=(K, 5)), rng.normal(size=(J, 5))
    table = cosines(u_KD, v_JD)
    small, large = sorted((K, J))
    best = max(
        sum(table[i, j] if K <= J else table[j, i] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(large), small)
    )
    matches = match_concepts(u_KD, v_JD)
    used = [match.b for match in matches if match.b is not None]
    assert len(set(used)) == len(used) == small
    assert sum(match.cosine for match in matches if match.b is not None) == pytest.approx(best)


def test_nearest_may_share_a_partner_and_the_assignment_flags_a_second_choice():
    u_KD = np.array([[1.0, 0.0], [1.0, 0.1]])
    v_JD = np.array([[1.0, 0.05], [0.0, 1.0]])
    assert [match.b for match in match_concepts(u_KD, v_JD, rule="nearest")] == [0, 0]
    forced = match_concepts(u_KD, v_JD)
    assert sorted(match.b for match in forced) == [0, 1]
    second = next(match for match in forced if match.b == 1)
    assert second.margin < 0 and second.low
    with pytest.raises(ValueError, match="known: nearest, assignment"):
        match_concepts(u_KD, v_JD, rule="best")
