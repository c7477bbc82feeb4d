"""Promises about docs/reproduce.md: every table of the papers is there, its commands are ones that the scripts accept,
how well each published number is known is said, and no number of ours stands there without a file that holds it."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from functools import cache, partialmethod
from pathlib import Path

import pytest

from hacl.config import Config, load_config
from hacl.models.families import FAMILIES
from tests.unit.test_documents import commands_of, script_call

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reproduce.md"
DEVIATIONS = ROOT / "docs/deviations.md"
LABELS = ("Shows", "Data", "Commands", "Hardware and hours", "Cannot be reproduced")
HEADER = ["model or setting", "measure", "published", "known", "ours"]
KNOWN = ("paper", "third party", "stored output", "inconsistent", "not found")
# Tables and figures with numbers, by paper; where a paper's numbering is not known, by what they show.
TABLES = {
    "HACL": [
        "HACL table 1: MMHal-Bench",
        "HACL table 2: POPE",
        "HACL table 3: multimodal benchmarks",
        "HACL table 4: visual question answering",
        "HACL table 5: ablation of hallucinated captions",
        "HACL table 6: training paradigm",
        "HACL figures: representations",
    ],
    "Representation shift": [
        "Shift table: concept overlap before and after",
        "Shift table: consistency and magnitude against recovery",
        "Shift table: concepts over training",
        "Shift table: strength, number of concepts, layer",
        "Shift table: steering to one answer",
        "Shift table: steering to a kind of answer",
        "Shift table: caption styles",
        "Shift table: several models",
        "Shift table: gender-neutral captions",
        "Shift table: safety",
        "Shift table: ablations of steering",
    ],
    "Learn-to-Steer": [
        "L2S table: safety on MM-SafetyBench",
        "L2S table: POPE",
        "L2S table: captions of COCO",
        "L2S table: selectivity on VLGuard",
        "L2S table: layers, strength, significance",
    ],
    "FlexAC": [
        "FlexAC table: hallucination",
        "FlexAC table: association (VDAT)",
        "FlexAC table: Creation-MMBench",
        "FlexAC table: general ability",
        "FlexAC table: ablation",
        "FlexAC table: number of instances",
        "FlexAC figures: where association lies",
        "FlexAC table: user study and cost",
    ],
}
NAMES = [name for names in TABLES.values() for name in names]
BORROWED = {"Shift table: consistency and magnitude against recovery"}  # its commands are those of the table before it
GIVEN = ("runs/task_states",)  # the reader's own
NEEDED = {  # what a setting cannot be without
    "objective.queue_hallucinated": ["objective.queue_size=8", "objective.hard_scope=global"],
    "train.grad_cache": ["train.gradient_accumulation_steps=2"],
}
NUMBER = re.compile(r"\d+\.\d+")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


@cache
def sections(level: str, parent: str | None = None) -> dict[str, str]:
    """Heading to text of the page's sections of a level; parent: only those below that heading of level one."""
    text = PAGE.read_text(encoding="utf-8")
    if parent is not None:
        text = sections("# ")[parent]
    fenced = re.sub(r"^```.*?^```", lambda block: re.sub("(?m)^#", "\0", block[0]), text, flags=re.M | re.S)
    parts = re.split(rf"^{level}(.+)$", fenced, flags=re.M)[1:]
    own = [re.split(r"^# ", body, flags=re.M)[0].replace("\0", "#") for body in parts[1::2]]
    return dict(zip(parts[::2], own, strict=True))


def rows_of(name: str) -> list[list[str]]:
    """Cells of the table of results of a section."""
    lines = [line for line in sections("## ")[name].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    start = cells.index(HEADER)
    return cells[start + 2 :]


def unheld(text: str) -> list[str]:
    """Decimal numbers of a text that stand in none of the files it links to; all of them where it links to none."""
    held = "".join((PAGE.parent / file).read_text(encoding="utf-8") for file in LINK.findall(text))
    return [
        number for number in NUMBER.findall(re.sub(r"\]\([^)]*\)", "]", text)) if number not in NUMBER.findall(held)
    ]


class Parsed(Exception):
    """The script has read its arguments."""


def stop_after(parser: argparse.ArgumentParser, parse, *arguments, **options):
    raise Parsed(parse(parser, *arguments, **options))


def parsed(script: str, words: tuple[str, ...]) -> argparse.Namespace:
    """What the script makes of its arguments; nothing of it runs beyond that. SystemExit where it refuses them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(argparse.ArgumentParser, name)
            patch.setattr(argparse.ArgumentParser, name, partialmethod(stop_after, parse))
        patch.setattr(sys, "argv", [script, *words])
        patch.syspath_prepend(str((ROOT / script).parent))
        with pytest.raises(Parsed) as found:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return found.value.args[0]


CALLS = [
    (script, tuple(words)) for line in commands_of(PAGE) if (call := script_call(line)) for script, words in [call]
]


@pytest.mark.parametrize("paper", TABLES)
def test_every_table_of_a_paper_has_its_section(paper):
    found = [name for name in sections("## ", paper) if not name.startswith("The ")]
    assert found == TABLES[paper]


def test_the_overview_names_every_table_and_those_without_commands():
    listed = re.findall(r"^\| \[(.+?)\]\(#.+?\) \| (in part|yes|no) \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert [name for name, _ in listed] == NAMES
    for name, has in listed:
        assert (has == "no") == ("```bash" not in sections("## ")[name] and not BORROWED & {name}), name


@pytest.mark.parametrize("name", NAMES)
def test_every_section_says_what_is_needed_and_what_cannot_be_had(name):
    text = sections("## ")[name]
    lacking = [label for label in LABELS if not re.search(rf"^\*\*{label}\*\*", text, flags=re.M)]
    assert not lacking, f"{name}: no {lacking}"
    hours = re.search(r"^\*\*Hardware and hours\*\*(.*?)(?:\n\n|\Z)", text, flags=re.M | re.S)[1]
    assert re.search(r"not estimated|not measured|#what-the-dry-run-says", hours), f"{name}: hours from where? {hours}"


@pytest.mark.parametrize("name", NAMES)
def test_every_published_number_says_how_well_it_is_known(name):
    rows = rows_of(name)
    assert rows, name
    for row in rows:
        assert len(row) == len(HEADER), f"{name}: {row}"
        _, _, published, known, _ = row
        word, _, reason = known.partition(":")
        assert word in KNOWN, f"{name}: {known!r} is none of {KNOWN}"
        assert bool(reason) == (word == "inconsistent"), f"{name}: say what disagrees, and only then: {row}"
        assert (word == "not found") <= (published == ""), f"{name}: a number that was not found: {row}"


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_ours_stands_without_a_file_that_holds_it(name):
    for row in rows_of(name):
        ours = row[-1]
        assert not ours or LINK.search(ours), f"{name}: {ours!r} names no file"
        assert not unheld(ours), f"{name}: {unheld(ours)} are not in the file named by {ours!r}"


def test_every_number_of_another_model_stands_in_the_document_it_links_to():
    lines = re.findall(r"Another model: .*?(?=\n\n|\Z)", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(lines) > 10
    for line in lines:
        assert LINK.search(line), line
        assert not unheld(line), f"{unheld(line)} stand in no file linked by {line!r}"


def test_the_models_that_run_here_are_those_with_an_adapter():
    line = re.search(r"^Adapters, [^.]*? are there for ([^.]*?)\.$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert set(re.findall("`(.+?)`", line[1])) == set(FAMILIES), "bring the models of docs/reproduce.md up to date"


def test_commands_call_nothing_but_scripts_of_this_project():
    assert len(CALLS) == len(commands_of(PAGE)) > 60
    missing = sorted({script for script, _ in CALLS if not (ROOT / script).is_file()})
    assert not missing


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {' '.join(call[1])}"[:90])
def test_every_command_is_accepted_by_its_script(call, capsys):
    script, words = call
    try:
        options = parsed(script, words)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    check_values(script, options)
    configs = [word for word in words if re.fullmatch(r"configs/\S+\.ya?ml", word)]
    assert all((ROOT / config).is_file() for config in configs), configs


def check_values(script: str, options: argparse.Namespace) -> None:
    """Raises ValueError for values that a script would refuse after its parser."""
    from hacl.evaluation.runner.evaluate import check_benchmarks
    from hacl.evaluation.scorers import scorer_class
    from hacl.steering import flexac_presets
    from hacl.steering.commands.fit import train_settings
    from hacl.steering.extraction_states import POOLINGS
    from hacl.steering.positions import PositionPolicy

    command = getattr(options, "command", None)
    if script == "scripts/evaluate.py" and options.benchmark:
        check_benchmarks(options.benchmark.split(","))
        for entry in options.option:
            benchmark, _, option = entry.partition("=")[0].partition(".")
            scorer_class(benchmark).check_options({option: None})
    if script == "scripts/steer.py" and command == "fit":
        train_settings(options)
    if script == "scripts/steer.py" and command == "extract":
        assert options.pooling in POOLINGS, options.pooling
    if script == "scripts/steer.py" and command in ("flexac", "curve"):
        flexac_presets.preset(options.preset)
    for policy in [getattr(options, "policy", None), *(getattr(options, "policies", None) or [])]:
        PositionPolicy.parse(policy or "all")


def test_every_run_that_a_command_reads_is_written_by_an_earlier_one():
    written: set[str] = set(GIVEN)
    for script, words in CALLS:
        after = [""] + list(words)
        for flag, word in zip(after, after[1:], strict=False):
            path = word.rpartition("=")[2]
            if not path.startswith(("runs/", "exports/")):
                continue
            if flag in ("--out", "--output", "--json") or word.startswith("train.output_dir="):
                written |= {path} if "--dry-run" not in words else set()
            else:
                known = any(path == there or path.startswith(there + "/") for there in written)
                assert known, f"{script} reads {path}, which no command before it writes"


TRAINING = [words for script, words in CALLS if script == "train.py"]


@pytest.mark.parametrize("words", TRAINING, ids=lambda words: " ".join(words)[:90])
def test_every_training_command_has_a_configuration_that_loads_with_its_overrides(words):
    file, *rest = [word for word in words if not word.startswith("--")]
    assert all("=" in word for word in rest), rest
    assert isinstance(load_config(ROOT / file, rest), Config)


def test_every_deviation_has_its_five_cells_and_none_is_empty():
    rows = [line for line in DEVIATIONS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 80
    for line in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert len(cells) == 5 and all(cells), line


SWITCHES = re.findall(r"`((?:model|data|objective|train|log)\.[a-z_0-9.]+)=([^`\s]+)`", DEVIATIONS.read_text("utf-8"))


@pytest.mark.parametrize(("key", "value"), sorted(set(SWITCHES)))
def test_every_switch_back_is_a_setting_that_loads(key, value):
    load_config(None, ["model.path=any", f"{key}={value}", *NEEDED.get(key, ())])


def test_every_option_back_is_one_of_some_script():
    options = set(re.findall(r"`(--[a-z-]+)", DEVIATIONS.read_text(encoding="utf-8")))
    sources = [*ROOT.glob("scripts/*.py"), *ROOT.glob("data_prep/*.py"), *ROOT.glob("hacl/**/*.py")]
    declared = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(options) > 20 and not sorted(option for option in options if f'"{option}"' not in declared)
