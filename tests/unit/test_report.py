"""Promises of the report: it is one file, it is honest, and it refuses results that it cannot show."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from hacl.report.page import build_report
from hacl.report.parts import mark_words
from hacl.report.schema import check_results
from hacl.report.tables import cell, control_first, text_table

ARMS = {"hacl": -0.1, "control": 0.0, "harmful": 0.2}


def make_results(seeds=3, images=200):
    """Three arms on the same images; arms differ by a planted shift of CHAIR_i."""
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(0.2, 0.6, images)
    arms = []
    for name, shift in ARMS.items():
        runs = []
        for seed in range(seeds):
            wrong = rng.binomial(5, np.clip(difficulty + shift, 0, 1))
            table = {f"image-{i}": [int(w), 5] for i, w in enumerate(wrong)}
            value = sum(t for t, _ in table.values()) / sum(b for _, b in table.values())
            runs.append(
                {
                    "base": 0,
                    "seed": seed,
                    "metrics": {"seen": {"chair_i": value, "gap": 0.5 + shift + 0.01 * seed}},
                    "items": {"seen": {"chair_i": table}},
                    "log": [{"step": s, "loss": 3.0 / s + 0.1 * seed} for s in range(1, 20)],
                    "seconds": 12.0,
                }
            )
        arms.append({"name": name, "label": name.title(), "runs": runs})
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    pixel = base64.b64encode(buffer.getvalue()).decode()
    return {
        "title": "A <test> report",
        "header": "demonstration: one base, three seeds",
        "control": "control",
        "splits": [{"name": "seen", "label": "Scenes like training"}],
        "measures": [
            {"key": "chair_i", "label": "CHAIR_i", "better": "lower", "headline": True, "group": "Captions"},
            {"key": "gap", "label": "modality gap", "better": None, "group": "States"},
            {"key": "never_measured", "better": "higher"},
        ],
        "arms": arms,
        "states2d": [
            {
                "title": t,
                "explained": [0.3, 0.1],
                "points": {k: rng.normal(size=(9, 2)).tolist() for k in ("image", "true")},
            }
            for t in ("before", "after")
        ],
        "examples": [
            {
                "image": f"data:image/png;base64,{pixel}",
                "truth": "a cup",
                "captions": [{"arm": "hacl", "text": "a cup & a fork", "marks": [[10, 14]]}],
            }
        ],
        "negative_results": ["the gap did not close"],
        "notes": ["a note"],
        "provenance": {"command": "fake"},
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return build_report(make_results(), folder, draws=200).read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_outside_itself(page):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "default-src 'none'" in page


def test_the_page_states_its_header_negative_results_and_limits(page):
    assert "demonstration: one base, three seeds" in page
    assert "the gap did not close" in page
    assert "its smallest possible p is 1" in page


def test_every_figure_has_text_and_every_table_has_header_scopes(page):
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", page))
    assert page.count("<thead>") == page.count("<table>") and 'scope="row"' in page
    assert len(re.findall("<figure>", page)) == 3


def test_text_from_models_cannot_become_markup(page):
    assert "A &lt;test&gt; report" in page and "a cup &amp; a <mark>fork</mark>" in page


def test_marks_that_overlap_are_joined_once():
    assert mark_words("a red cup", [[2, 9], [6, 9]]) == "a <mark>red cup</mark>"


def test_the_control_row_comes_first_whatever_the_order_of_arms():
    assert [arm["name"] for arm in control_first(make_results())] == ["control", "hacl", "harmful"]
    lines = text_table(make_results(), draws=100).splitlines()
    rows = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in ("Control", "Hacl", "Harmful")]
    assert rows == ["Control", "Hacl", "Harmful"]


def test_planted_differences_are_called_better_and_worse_by_the_measures_direction():
    results = make_results()
    found = {arm["name"]: cell(results, arm, "seen", results["measures"][0], 300) for arm in results["arms"]}
    assert found["hacl"].verdict == "better" and found["harmful"].verdict == "worse"
    assert found["control"].verdict is None and found["control"].difference is None
    neutral = {arm["name"]: cell(results, arm, "seen", results["measures"][1], 300) for arm in results["arms"]}
    assert neutral["hacl"].verdict == "differs"


def test_an_interval_without_items_stops_at_the_bounds_of_its_measure():
    results = make_results()
    for arm in results["arms"]:
        for run, auc in zip(arm["runs"], (1.0, 0.9, 0.97), strict=True):
            run["metrics"]["seen"]["auc"] = auc
    free, bounded = {"key": "auc"}, {"key": "auc", "bounds": [0, 1]}
    control = control_first(results)[0]
    assert cell(results, control, "seen", free).value.high > 1
    assert cell(results, control, "seen", bounded).value.high == 1.0


def test_an_arm_against_itself_is_unclear():
    results = make_results()
    results["arms"].append({**results["arms"][1], "name": "copy"})
    assert cell(results, results["arms"][-1], "seen", results["measures"][0], 100).verdict == "unclear"


def test_a_measure_that_no_run_has_is_not_shown(page):
    assert "never_measured" not in page


def test_a_null_measure_is_printed_as_missing(tmp_path):
    results = make_results()
    for arm in results["arms"]:
        for run in arm["runs"]:
            run["metrics"]["seen"]["chair_i"] = None
    assert "n/a" in build_report(results, tmp_path, draws=50).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("header"), "header"),
        (lambda r: r.update(control="nothing"), "nothing"),
        (lambda r: r["measures"][0].update(better="down"), "chair_i"),
        (lambda r: r["arms"][0]["runs"].append(r["arms"][0]["runs"][0]), "twice"),
        (lambda r: r["examples"][0]["captions"][0].update(marks=[[3, 99]]), "outside"),
    ],
)
def test_results_that_do_not_fit_are_refused_by_name(change, message):
    results = make_results()
    change(results)
    with pytest.raises(ValueError, match=message):
        check_results(results)


def test_a_missing_example_image_is_named(tmp_path):
    results = make_results()
    results["examples"][0]["image"] = "nowhere.png"
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        build_report(results, tmp_path, draws=20)


def test_a_broken_log_line_is_named(tmp_path):
    results = make_results()
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{oops\n', encoding="utf-8")
    run = results["arms"][0]["runs"][0]
    del run["log"]
    run["log_path"] = "log.jsonl"
    with pytest.raises(ValueError, match=r"log\.jsonl:2"):
        build_report(results, tmp_path, draws=20)
