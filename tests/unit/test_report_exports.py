"""Promises of the tables of many runs: every number is there, text is escaped, rulers are never mixed in a column."""

import csv
import json

import pytest

from hacl.report.exports import build_table, export_reports, read_runs
from hacl.report.formats import latex_escape, latex_table, markdown_table, value_text


def report(accuracy, parser="official", gold="a" * 64, scorer="pope"):
    return {
        "metrics": {"accuracy": accuracy, "f1": None, "TP": 3, "accuracy/object": 0.1},
        "intervals": {"accuracy": [accuracy - 0.1, accuracy + 0.1], "f1": None},
        "warnings": ["f1 is undefined (0/0) and reported as null"],
        "meta": {"scorer": scorer, "version": 1, "options": {"parser": parser}, "inputs": {"gold": gold, "mine": "m"}},
    }


def save(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path):
    for run, value in (("control_1", 0.6), ("hacl", 0.7)):
        for split in ("random", "popular"):
            save(tmp_path, f"{run}/pope/report_{split}.json", report(value, gold=split))
        save(tmp_path, f"{run}/chair/report.json", report(value / 2, scorer="chair", parser="pattern"))
    return [tmp_path / "control_1", tmp_path / "hacl"]


def test_one_call_writes_every_format_with_every_number(runs, tmp_path):
    paths = export_reports(runs, tmp_path / "out")
    assert [path.suffix for path in paths] == [".csv", ".json", ".md", ".tex", ".html"]
    rows = list(csv.DictReader(paths[0].open(encoding="utf-8")))
    assert len(rows) == len(json.loads(paths[1].read_text())["values"]) == 2 * 3 * 2
    assert {(r["benchmark"], r["part"]) for r in rows} == {("pope", "random"), ("pope", "popular"), ("chair", "")}
    text = paths[2].read_text()
    assert "| control_1 | 0.600 [0.500, 0.700] | n/a |" in text and "parser official" in text and "undefined" in text
    page = paths[4].read_text()
    assert "data:image/svg+xml" in page and "http:" not in page.replace("http-equiv", "") and "chair" in page


def test_latex_rows_are_escaped_and_have_booktabs_rules(runs, tmp_path):
    (path,) = export_reports(runs, tmp_path / "out", metrics=["accuracy"], formats=["tex"])
    text = path.read_text()
    assert (
        text.count(r"\toprule") == text.count(r"\bottomrule") == 3 and r"control\_1 & 0.600 [0.500, 0.700] \\" in text
    )
    assert latex_escape("a_b & 5% {x} \\ ~^<#$") == (
        r"a\_b \& 5\% \{x\} \textbackslash{} \textasciitilde{}\textasciicircum{}\textless{}\#\$"
    )
    assert latex_table([["a", "b"], ["c", "d"]]).splitlines()[0] == r"\begin{tabular}{lr}"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"parser": "opera"}, "option parser: official against opera"), ({"gold": "b" * 64}, "references")],
)
def test_parsers_and_references_are_not_mixed_in_one_column(tmp_path, change, said):
    files = [save(tmp_path, "a.json", report(0.5)), save(tmp_path, "b.json", report(0.6, **change))]
    with pytest.raises(ValueError, match=said) as error:
        export_reports(files, tmp_path / "out")
    assert "a.json" in str(error.value) and "b.json" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_runs_take_the_names_they_are_given_and_a_name_takes_no_second_report_of_a_benchmark(tmp_path):
    path = save(tmp_path, "report.json", report(0.5))
    assert build_table(read_runs([f"base={path}", f"tuned={path}"])).runs == ["base", "tuned"]
    with pytest.raises(ValueError, match="two reports of pope"):
        read_runs([path, path])
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_runs([tmp_path / "nothing"])
    with pytest.raises(ValueError, match=r"wrong\.json"):
        read_runs([save(tmp_path, "wrong.json", [1])])
    with pytest.raises(ValueError, match="recall"):
        build_table(read_runs([path]), metrics=["recall"])
    with pytest.raises(ValueError, match="docx"):
        export_reports([path], tmp_path / "out", formats=["docx"])


def test_numbers_have_the_digits_their_size_needs():
    assert value_text(0.12345, 0.1, 0.2) == "0.123 [0.100, 0.200]" and value_text(None) == "n/a"
    assert value_text(1234.5) == "1234.5" and value_text(37.0) == "37"
    assert markdown_table([["a|b"], ["c\nd"]]) == "| a\\|b |\n| --- |\n| c d |\n"
