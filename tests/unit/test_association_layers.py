"""Promises about where association shows: planted layers, nulls, held-out AUC, replacement, and the report."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from hacl.steering import MeanSteerer
from hacl.steering.association import AssociationFeatures
from hacl.steering.association.construct import build_vector
from hacl.steering.association.layers import analyse_layers, effective_rank, held_out_auc, suggest_window
from hacl.steering.association.replacement import Run, replacement_map
from hacl.steering.association.result import AssociationReport
from tests.reference.steering_inputs import hook_count

L, D = 6, 20


def planted(strengths=(0, 0, 3, 3, 3, 0), n=60, *, seed=0, per_group=2):
    """Association of one direction with a strength per layer, over states whose noise grows with depth."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=D)
    u /= np.linalg.norm(u)
    base = 4 * rng.normal(size=(len(strengths), n // per_group, 1, D)).repeat(per_group, axis=2)
    base = base.reshape(len(strengths), n, D)
    grow = np.linspace(0.2, 1.0, len(strengths))[:, None, None]
    sides = [base + grow * rng.normal(size=base.shape) for _ in range(3)]
    sides[1] = sides[1] + np.asarray(strengths)[:, None, None] * u
    ids = tuple(map(str, range(n)))
    groups = tuple(str(i // per_group) for i in range(n))
    features = AssociationFeatures(sides[0], sides[1], tuple(range(len(strengths))), ids, groups)
    return features, sides[2], u


def test_the_planted_layers_are_suggested_and_the_null_is_not():
    features, second, _ = planted()
    found = analyse_layers(features, second_grounded=second, draws=200)
    assert found.suggested == (2, 3, 4)
    for row in found.rows:
        planted_here = row["layer"] in (2, 3, 4)
        assert (row["excess_cosine_low"] > 0) == planted_here
        assert (row["coherence"] > 2 * row["coherence_null"]) == planted_here
        assert (row["auc_low"] > 0.55) == planted_here
        assert row["mismatched_cosine"] > row["cosine"]
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
    assert found.rows[2]["next_cosine"] > 0.9 > 0.5 > abs(found.rows[0]["next_cosine"])


def test_distance_that_grows_with_depth_is_not_taken_for_association():
    features, second, _ = planted(strengths=(0,) * L)
    found = analyse_layers(features, second_grounded=second, draws=200)
    assert found.rows[-1]["cosine"] > 3 * found.rows[0]["cosine"] and found.rows[-1]["cosine_low"] > 0
    assert all(row["excess_cosine_low"] < 0 < row["excess_cosine_high"] for row in found.rows)
    assert all(row["coherence"] < 1.3 * row["coherence_null"] for row in found.rows)
    assert found.suggested is None and analyse_layers(features.only(range(0, 60, 2)), draws=200).suggested is None


def test_the_null_is_the_best_there_is_and_is_named():
    features, second, _ = planted()
    kinds = [
        analyse_layers(given, second_grounded=null, draws=50).settings["null"]
        for given, null in ((features, second), (features, None), (features.only(range(0, 60, 2)), None))
    ]
    assert kinds[0] == "second grounded answer" and "group" in kinds[1] and kinds[2].startswith("none")
    same = features.grounded.copy()
    same[:, 1::2] = same[:, ::2]  # two hallucinated captions of one caption: no second grounded answer
    assert "none" in analyse_layers(dataclasses.replace(features, grounded=same), draws=50).settings["null"]
    rows = analyse_layers(features.only(range(0, 60, 2)), draws=50).rows
    assert rows[0]["null_cosine"] is None and rows[0]["excess_cosine_low"] is None and rows[3]["score"] > 0


def test_auc_is_held_out():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 200))  # more coordinates than pairs: in-sample projections separate perfectly
    direction = (a - b).mean(axis=0)
    assert np.mean(a @ direction > (b @ direction)[:, None]) > 0.95
    found = held_out_auc(a, b, [str(i) for i in range(40)], draws=200)
    assert 0.3 < found["auc"] < 0.7 and found["auc_low"] < 0.5 < found["auc_high"]


def test_rows_of_one_group_are_never_on_both_sides():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(8, 1, 100)).repeat(10, axis=1).reshape(80, 100)  # differences are the group's own
    groups = [str(i // 10) for i in range(80)]
    noise = 0.01 * rng.normal(size=base.shape)
    leaking = held_out_auc(base + noise, -base, [str(i) for i in range(80)], draws=20)["auc"]
    assert held_out_auc(base + noise, -base, groups, draws=20)["auc"] < 0.8 < leaking


def test_effective_rank_counts_directions():
    u = np.eye(8)
    assert effective_rank(np.outer(np.arange(1.0, 9), u[0])) == pytest.approx(1)
    assert effective_rank(np.concatenate([u[:4], -u[:4]])) == pytest.approx(4)


def test_the_best_adjacent_layers_win_and_nothing_is_suggested_of_nothing():
    assert suggest_window([0, 1, 0, 3, 2, 0], "abcdef", 2) == ("d", "e")
    assert suggest_window([0.0] * 4, range(4), 3) is None
    with pytest.raises(ValueError, match="window=9"):
        analyse_layers(planted()[0], window=9)
    with pytest.raises(ValueError, match="1 group"):
        analyse_layers(planted()[0].only([0, 1]))
    with pytest.raises(ValueError, match="second_grounded"):
        analyse_layers(planted()[0], second_grounded=np.zeros((1, 2, 3)))


# Replacement in a model of four blocks.

BLOCKS, PLANTED, LENGTH, IMAGE = 4, 2, 24, 16


@pytest.fixture(scope="module")
def model(tiny_llava):
    """Four blocks, so that there are layers before and after the planted one, and tokens that look at each other."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(tiny_llava)
    config.text_config.num_hidden_layers = BLOCKS
    config.text_config.layer_types = None
    torch.manual_seed(3)
    made = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim == 2 and ("language_model" in name or "lm_head" in name):
                weight.mul_(8)
    return made


def one_input(model, seed):
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 50, (LENGTH - IMAGE - 1,), generator=draw).tolist()
    ids = torch.tensor([[1, *[model.config.image_token_id] * IMAGE, *words]])
    pixels = torch.randn(1, 3, 32, 32, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def direction():
    u = torch.randn(32, generator=torch.Generator().manual_seed(11))
    return u / u.norm()


def planted_runs(model, count=3, *, back=1, size=20.0):
    """The same token ids in both runs; the associative one has `size` u added after block 2, `back` before the end."""
    runs = []
    for seed in range(count):
        inputs = one_input(model, seed)
        mask = torch.zeros(1, LENGTH, dtype=torch.bool)
        mask[0, LENGTH - back] = True
        steerer = MeanSteerer({PLANTED: size * direction()}, policy="all")
        runs.append((Run(inputs, 4), Run(inputs, 4, Planted(steerer, mask))))
    return runs


class Planted(MeanSteerer):
    """A constant shift at one position, whatever the policy."""

    def __init__(self, steerer, mask):
        super().__init__(steerer.values)
        self.mask = mask

    def adjust(self, layer, h_RTD, shift, mask):
        return torch.where(self.mask[..., None], super().adjust(layer, h_RTD, shift, mask), h_RTD)


def test_a_layer_planted_at_the_last_position_is_found_exactly(model):
    model(**one_input(model, 0))  # transformers adds hooks of its own once
    before = hook_count(model)
    found = replacement_map(model, planted_runs(model))
    assert hook_count(model) == before and (found.used, found.skipped) == (3, 0)
    assert max(found.base[:PLANTED]) < 1e-6 and min(found.base[PLANTED:]) > 1e-3
    for m, row in enumerate(found.ratios):
        for at, ratio in enumerate(row):
            if at < m or at < PLANTED:
                assert ratio is None  # before the replacement, or no distance to lose
            else:
                assert ratio == pytest.approx(0.0 if m >= PLANTED else 1.0, abs=1e-5), (m, at)
    origins = [row["origin"] for row in found.origin]
    assert origins == [pytest.approx(0, abs=1e-5)] * 2 + [pytest.approx(1, abs=1e-5), None]


def test_what_later_tokens_absorbed_is_left_after_replacing_the_place_it_came_from(model):
    found = replacement_map(model, planted_runs(model, back=3), positions="last_k", k=2)
    assert found.base[PLANTED] < 1e-6 < found.base[PLANTED + 1]  # arrives through attention one block later
    early = replacement_map(model, planted_runs(model, back=3), positions="last_k", k=3, measure="response")
    assert early.ratios[PLANTED][PLANTED + 1] == pytest.approx(0, abs=1e-5)
    partial = replacement_map(model, planted_runs(model, back=3), positions="last", measure="response")
    assert 0.05 < partial.ratios[PLANTED][PLANTED + 1] <= 1.0


def test_replacing_everything_leaves_nothing_which_is_why_it_proves_nothing(model):
    found = replacement_map(model, planted_runs(model, back=3), positions="all")
    assert all(ratio is None or abs(ratio) < 1e-5 for row in found.ratios[PLANTED:] for ratio in row)


def test_a_random_donor_does_not_bring_the_runs_together(model):
    own = replacement_map(model, planted_runs(model), donor="grounded")
    other = replacement_map(model, planted_runs(model), donor="random")
    assert own.ratios[PLANTED][PLANTED] < 1e-5 and other.ratios[PLANTED][PLANTED] > 0.5


def test_the_reverse_direction_makes_a_grounded_run_associative(model):
    found = replacement_map(model, planted_runs(model), reverse=True, tokens=[(5, 6)] * 3)
    assert found.ratios[PLANTED][BLOCKS - 1] == pytest.approx(0, abs=1e-5)
    margins = found.margins
    assert margins["replaced"][PLANTED] == pytest.approx(margins["source"], abs=1e-4)
    assert margins["replaced"][0] == pytest.approx(margins["target"], abs=1e-4)
    forward = replacement_map(model, planted_runs(model), tokens=[(5, 6)] * 3).margins
    assert margins["source"] == pytest.approx(forward["target"]) != pytest.approx(forward["source"])


def test_positions_that_runs_do_not_share_are_counted_and_refused_if_there_are_none_at_all(model):
    (grounded, associative), *rest = planted_runs(model)
    unequal = dataclasses.replace(associative, response=2)
    found = replacement_map(model, [(grounded, unequal), *rest], positions="response_only")
    assert (found.used, found.skipped) == (2, 1)
    assert replacement_map(model, planted_runs(model), positions="image_only").used == 3
    with pytest.raises(ValueError, match="none of 1 pairs"):
        replacement_map(model, [(grounded, unequal)], positions="response_only")
    with pytest.raises(ValueError, match="positions='middle'"):
        replacement_map(model, rest, positions="middle")
    padded = {**grounded.inputs, "attention_mask": torch.zeros(1, LENGTH, dtype=torch.long)}
    with pytest.raises(ValueError, match="no padding"):
        replacement_map(model, [(Run(padded, 4), associative)])


def test_states_of_a_planted_layer_give_its_direction_and_its_window(model):
    from hacl.representations.forward import watching
    from hacl.representations.parts import find_parts
    from hacl.steering import steering

    sides = ([], [])
    for runs in planted_runs(model, count=8):
        for side, run in zip(sides, runs, strict=True):
            states = {}
            names = [str(i) for i in range(BLOCKS)]
            with watching(find_parts(model), names, lambda name, h: states.update({name: h[0, -1].detach()})):  # noqa: B023
                if run.steerer is None:
                    model(**run.inputs)
                else:
                    with steering(model, run.steerer):
                        model(**run.inputs)
            side.append(np.stack([states[name].numpy() for name in names]))
    features = AssociationFeatures(
        *(np.stack(side, axis=1) for side in sides), tuple(range(BLOCKS)), tuple(map(str, range(8)))
    )
    u = direction().numpy()
    vector = build_vector(features, select_by="all").vector(PLANTED)
    assert vector @ u / np.linalg.norm(vector) > 0.999
    assert PLANTED in analyse_layers(features, window=2, draws=50).suggested


def test_the_report_is_plain_json_csv_and_one_page(model, tmp_path):
    features, second, _ = planted()
    report = AssociationReport(
        analyse_layers(features, second_grounded=second, draws=50),
        {"last": replacement_map(model, planted_runs(model), draws=50)},
        {0: {"mean": 0.9, "low": 0.8, "high": 1.0}},
    )
    report.write(tmp_path)
    content = json.loads((tmp_path / "association.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["layers"]["suggested"] == [2, 3, 4] and content["replacements"]["last"]["used"] == 3
    lines = (tmp_path / "association_layers.csv").read_text().splitlines()
    assert len(lines) == L + 1 and lines[0].startswith("layer,depth,cosine,cosine_low")
    page = (tmp_path / "association.md").read_text()
    assert "Suggested layers: 2, 3, 4" in page and page.count("data:image/svg+xml") == 2
    nothing = analyse_layers(planted(strengths=(0,) * L, seed=5)[0], draws=50)
    empty = dataclasses.replace(nothing, suggested=None)
    assert "has no ground" in AssociationReport(empty).markdown()
