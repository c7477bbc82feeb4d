"""Promises of what all scorers share: reading, options, errors, intervals, items as a stream, the command line."""

import hashlib
import json
import random
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

import hacl.evaluation.scorers as scorers
from hacl.evaluation import InputError, score
from hacl.evaluation.reports import ScoreReport
from hacl.evaluation.scorers import ImageSums, score_to
from hacl.evaluation.scorers.reading import iter_rows, require
from hacl.evaluation.statistics import bootstrap_runs

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = [
    {"question_id": n, "image": f"image-{n // 6}", "text": "Is there a dog?", "label": "yes" if n % 2 else "no"}
    for n in range(60)
]
REPLIES = ("Yes", "No", "", "no, there is none.", "Ja – ein Hund 🐕", "Yes, and there is no doubt")


def answers(seed=0):
    draw = random.Random(seed)
    return [{"question_id": n, "answer": draw.choice(REPLIES)} for n in range(60)]


def write_lines(path, rows, end="\n", mark=""):
    text = mark + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes(text.encode())
    return path


def read(source):
    return [(str(where), row) for where, row in iter_rows(source)]


def test_rows_are_the_same_from_any_file_layout_and_from_memory(tmp_path):
    rows = answers()
    plain = write_lines(tmp_path / "plain.jsonl", rows)
    crlf = write_lines(tmp_path / "crlf.jsonl", rows, end="\r\n", mark="\ufeff")
    gaps = write_lines(tmp_path / "gaps.jsonl", rows, end="\n\n  \n")
    array = tmp_path / "array.json"
    array.write_text("\ufeff\n " + json.dumps(rows, indent=2), encoding="utf-8")
    for source in (plain, str(plain), crlf, gaps, array, rows, iter(rows)):
        assert [row for _, row in read(source)] == rows


def test_a_row_says_where_it_is_from(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2}])
    assert [where for where, _ in read(path)] == [f"{path}:1", f"{path}:2"]
    assert [where for where, _ in read([{"a": 1}])] == ["prediction 1"]


@pytest.mark.parametrize(
    "content, message",
    [(b"", "empty"), (b"\n \n", "empty"), (b"[]", "empty"), (b'{"a": 1}\n{"a": \n', ":2: not JSON"),
     (b'{"a": 1} {"a": 2}', ":1: one JSON object a line"), (b"17\n", "one JSON object a line"),
     (b'[{"a": 1}, 3]', "record 2"), (b'{"a": "\xff"}', "not UTF-8"), (b'[{"a": 1}', "not JSON")],
)  # fmt: skip
def test_a_file_that_is_no_list_of_objects_is_refused_by_place(tmp_path, content, message):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match="folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        score("pope", answers(), tmp_path / "nowhere.json")


def test_a_field_is_required_with_its_type():
    assert require({"n": 3}, "n", "here", (int, str)) == 3
    for row in ({}, {"n": True}, {"n": None}, {"n": 1.5}):
        with pytest.raises(InputError, match=r"here: .*'n'"):
            require(row, "n", "here", int)


def test_unknown_benchmarks_options_and_values_get_a_suggestion():
    with pytest.raises(ValueError, match="'pope'"):
        score("popee", [], [])
    with pytest.raises(ValueError, match="did you mean 'parser'"):
        score("pope", answers(), REFERENCES, parsr="official")
    with pytest.raises(ValueError, match="official, opera, strict"):
        score("pope", answers(), REFERENCES, parser="lenient")
    with pytest.raises(InputError, match="needs references"):
        score("pope", answers())


@pytest.mark.parametrize("benchmark", scorers.SCORERS)
def test_every_benchmark_has_a_scorer_that_describes_itself(benchmark):
    kind = scorers.scorer_class(benchmark)
    assert kind.benchmark == benchmark and kind.__doc__ and kind.version >= 1
    for option in kind.options:
        assert option.help and option.name.isidentifier()
        assert option.default is None or not option.choices or option.default in option.choices


def test_the_order_of_lines_changes_nothing_but_the_order_of_items():
    rows = answers()
    mixed = random.Random(1).sample(rows, len(rows))
    first, second = score("pope", rows, REFERENCES), score("pope", mixed, REFERENCES)
    assert first.metrics == second.metrics and first.intervals == second.intervals
    assert [item["question_id"] for item in second.items] == [row["question_id"] for row in mixed]
    assert sorted(map(str, first.items)) == sorted(map(str, second.items))


def test_a_report_names_scorer_options_and_the_hash_of_every_input(tmp_path):
    predictions = write_lines(tmp_path / "p.jsonl", answers())
    references = write_lines(tmp_path / "r.jsonl", REFERENCES)
    meta = score("pope", predictions, references, parser="opera").meta
    assert meta["scorer"] == "pope" and meta["version"] == 1 and meta["options"]["parser"] == "opera"
    assert meta["inputs"] == {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (references, predictions)
    }
    loaded = score("pope", answers(), REFERENCES).meta["inputs"]
    assert set(loaded) == {"references", "predictions"} and all(len(value) == 64 for value in loaded.values())


def test_a_report_is_plain_json_and_reads_like_a_dictionary():
    report = score("pope", answers(), REFERENCES)
    content = json.loads(json.dumps(report.to_json(tables=True)))
    assert content["metrics"] == report["metrics"] == report.metrics and len(content["items"]) == 60
    assert content["tables"]["accuracy"]["image-0"][1] == 6
    assert "items" not in report.to_json(items=False) and dict(report)["metrics"] == report.metrics
    with pytest.raises(KeyError):
        report["metric"]
    assert ScoreReport().to_json()["intervals"] == {}


def test_undefined_ratios_are_null_with_a_warning_or_the_value_asked_for():
    silent = [{"question_id": n, "answer": "no"} for n in range(60)]
    report = score("pope", silent, REFERENCES)
    assert report.metrics["precision"] is None and report.metrics["f1"] is None and report.metrics["recall"] == 0
    assert any("precision" in line and "0/0" in line for line in report.warnings)
    assert report.intervals["precision"] is None and report.intervals["f1"] is None
    filled = score("pope", silent, REFERENCES, zero_division=0)
    assert filled.metrics["precision"] == filled.metrics["f1"] == 0 and filled.warnings


def test_many_items_stream_and_equal_the_list(monkeypatch, tmp_path):
    rows = answers()
    path = write_lines(tmp_path / "p.jsonl", rows)
    expected = score("pope", rows, REFERENCES).items
    assert isinstance(expected, list)
    monkeypatch.setattr(scorers, "ITEM_LIMIT", 7)
    for source in (path, rows, iter(rows)):
        report = score("pope", source, REFERENCES)
        assert not isinstance(report.items, list)
        assert list(report.items) == expected and list(report.items) == expected
        assert report.to_json()["items"] == expected
    given = []
    assert score_to(given.append, "pope", path, REFERENCES).items == [] and given == expected


def test_sums_by_image_give_the_interval_of_the_statistics_module():
    draw = random.Random(3)
    sums, table = ImageSums(["a", "b"]), {}
    for n in range(300):
        image, top = f"i{n % 90}", draw.random()
        sums.add(image, "a", top, 2)
        entry = table.setdefault(image, [0.0, 0.0])
        entry[0] += top
        entry[1] += 2
    assert sums.tables() == {"a": {image: pytest.approx(pair) for image, pair in table.items()}}
    low, high = sums.intervals(draws=2000)["a"]
    theirs = bootstrap_runs([table], draws=2000)
    assert low == pytest.approx(theirs.low, abs=0.004) and high == pytest.approx(theirs.high, abs=0.004)


def test_the_interval_of_many_images_is_the_limit_of_the_bootstrap(monkeypatch):
    rng = np.random.default_rng(0)
    bottoms = rng.integers(1, 7, size=4000)
    tops = rng.binomial(bottoms, 0.8)
    sums = ImageSums.from_arrays(range(4000), {"a": (tops, bottoms)})
    drawn = sums.intervals()["a"]
    monkeypatch.setattr("hacl.evaluation.scorers.evidence.BOOTSTRAP_LIMIT", 10)
    assert sums.intervals()["a"] == pytest.approx(drawn, abs=1e-3)
    nearly = ImageSums.from_arrays(range(4000), {"a": (np.arange(4000) > 0, np.ones(4000))})
    assert nearly.intervals()["a"][1] == 1


def test_images_answered_about_stay_in_the_table_even_at_zero_over_zero():
    sums = ImageSums(["precision", "recall"])
    sums.add("first", "recall", 1, 1)
    sums.add("second", "precision", 0, 0)
    assert sums.tables() == {"precision": {"second": [0, 0]}, "recall": {"first": [1, 1]}}
    assert sums.intervals() == {"precision": None, "recall": None}
    with pytest.raises(KeyError):
        sums.add("first", "f1", 1, 1)


def script(name):
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(capsys):
    """Run scripts/score.py in this process: (exit status, standard output, standard error)."""
    module = script("score")

    def run(*arguments):
        try:
            status = module.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


def test_the_command_writes_report_and_items_and_prints_the_metrics(command, tmp_path):
    predictions = write_lines(tmp_path / "p.jsonl", answers())
    references = write_lines(tmp_path / "r.jsonl", REFERENCES)
    out, items = tmp_path / "out.json", tmp_path / "items.jsonl"
    status, shown, complaint = command("pope", "--predictions", predictions, "--references", references,
                                       "--parser", "official", "--json", out, "--items", items, "--tables")  # fmt: skip
    assert status == 0, complaint
    expected = score("pope", predictions, references, parser="official")
    written = json.loads(out.read_text())
    assert written["metrics"] == expected.metrics and written["intervals"] == expected.intervals
    assert written["tables"] == expected.by_image() and "items" not in written
    assert [row for _, row in iter_rows(items)] == expected.items
    assert "accuracy" in shown and "[" in shown and not list(tmp_path.glob("*.partial"))


def test_half_a_surrogate_pair_in_an_id_survives_the_files(command, tmp_path):
    odd = "\ud83d"
    predictions, references, items = (tmp_path / name for name in ("p.jsonl", "r.jsonl", "items.jsonl"))
    predictions.write_text(json.dumps({"question_id": odd, "answer": odd}))
    references.write_text(json.dumps({"question_id": odd, "image": odd, "label": "no"}))
    done = command("pope", "--predictions", predictions, "--references", references, "--items", items,
                   "--json", tmp_path / "out.json", "--tables")  # fmt: skip
    assert done[0] == 0 and [row["question_id"] for _, row in iter_rows(items)] == [odd]
    assert odd in json.loads((tmp_path / "out.json").read_text())["tables"]["accuracy"]


def test_the_command_ends_with_2_and_leaves_no_items_when_inputs_do_not_fit(command, tmp_path):
    predictions = write_lines(tmp_path / "p.jsonl", answers()[1:])
    references = write_lines(tmp_path / "r.jsonl", REFERENCES)
    items = tmp_path / "items.jsonl"
    start = ("pope", "--predictions", predictions, "--references", references, "--items", items)
    status, _, complaint = command(*start)
    assert status == 2 and "question_id 0" in complaint
    assert not items.exists() and not list(tmp_path.glob("*.partial"))
    status, _, complaint = command(*start, "--allow-missing", "--zero-division")
    assert status == 0 and "question_id 0" in complaint and items.exists()
    assert command("pope", "--predictions", predictions)[0] == 2
    assert command("popee", "--predictions", predictions)[0] == 2


@pytest.mark.parametrize("benchmark", scorers.SCORERS)
def test_the_help_of_a_benchmark_shows_its_fields_options_and_an_example(command, benchmark):
    status, text, _ = command(benchmark, "--help")
    assert status == 0
    kind = scorers.scorer_class(benchmark)
    flags = [option.flag for option in kind.options]
    for word in (*flags, "example:", f"score.py {benchmark} ", "--allow-missing", "--zero-division"):
        assert word in text
    assert kind.__doc__.splitlines()[0] in text


def test_the_slow_ways_that_the_benchmark_times_find_the_same_figures(tmp_path):
    bench = script("bench_score")
    bench.write_pope(tmp_path, 600)
    bench.write_chair(tmp_path, 60)
    assert bench.pope_scorer(tmp_path, 600) == bench.pope_bare_loop(tmp_path, 600)
    assert bench.chair_scorer(tmp_path, 60) == bench.chair_published_scheme(tmp_path, 60)
