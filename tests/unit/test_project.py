"""Promises about the project as a whole: layers, forbidden constructs, command-line help, documents, environments."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_FILES = sorted((ROOT / "hacl").rglob("*.py"))
COMMANDS = sorted([ROOT / "train.py", *(ROOT / "scripts").glob("*.py"), *(ROOT / "data_prep").glob("*.py")])
SOURCE_FILES = PACKAGE_FILES + [path for path in COMMANDS if path.exists()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What each part of the package may import besides itself. Lower layers come first.
LAYERS = {
    "config": set(),
    "data": {"config"},
    "hallucinate": {"config", "data"},
    "losses": set(),
    "world": {"config", "data"},
    "models": {"config", "data", "world"},
    "training": {"config", "data", "models", "losses"},
    "representations": {"config", "data", "models"},
    "steering": {"config", "data", "models", "representations"},
    "evaluation": {"config", "data", "models", "losses", "training", "representations", "steering"},
    "compare": {"config", "data", "models", "representations", "steering", "evaluation"},
    "study": {"config", "data", "models", "representations", "steering", "evaluation", "compare"},
    "report": set(),
    "playground": {"config", "data", "models", "steering", "evaluation"},
    "pocket": {
        "config", "data", "hallucinate", "world", "models", "losses", "training", "representations", "steering",
        "evaluation", "compare", "study", "report",
    },
    "smol": {
        "config", "data", "hallucinate", "models", "losses", "training", "representations", "steering", "evaluation",
        "compare", "study", "report",
    },
}  # fmt: skip

# The scenes of the offline world are data; what is trained on them stands at the top.
WORLD = {"world", "scenes", "draw", "language", "hallucinate"}

# "Nothing but results": a report may import what defines an interval, what makes two results comparable,
# and how text is written down.
RESULTS = ("hacl.evaluation.statistics", "hacl.evaluation.comparable", "hacl.plain_text")

# Modules that promise to work where torch is not installed.
TORCH_FREE = ["config.py", "hallucinate", "report"]
TORCH_FREE += [
    f"data/{name}.py" for name in ("schema", "record_fields", "records", "images", "json_text", "json_stream")
]
TORCH_FREE += [f"evaluation/{name}.py" for name in ("__init__", "chair", "pope", "reports", "statistics")]
TORCH_FREE += [f"evaluation/{name}.py" for name in ("comparable", "compare_runs", "paired_tests")]
TORCH_FREE += ["evaluation/scorers", "evaluation/judges"]
TORCH_FREE += [f"representations/{name}.py" for name in ("join", "manifest", "reader", "readout", "selectors")]
TORCH_FREE += [f"representations/{name}.py" for name in ("samples", "settings", "shards", "tensor_files", "words")]
TORCH_FREE += [f"chat_api{part}.py" for part in ("", "_cache", "_cost", "_http", "_types")]
TORCH_FREE += [f"representations/{name}.py" for name in ("dictionaries", "grounding", "matching", "stability")]
TORCH_FREE += [f"compare/{name}.py" for name in ("steps", "linear_maps", "concept_recovery", "shift_vectors", "drift")]

# Torch-free to import, but opens weights that the user gives, inside functions.
LATE_WEIGHTS = ["evaluation/scorers/creative_embedders.py"]
LATE_WEIGHTS += [f"hallucinate/backends/{name}.py" for name in ("model", "scoring")] + ["hallucinate/image_text.py"]
HEAVY = {"torch", "transformers", "deepspeed", "peft", "open_clip", "timm", "accelerate", "datasets"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import; `from a import b` counts as a.b, so submodules are seen."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = list(path.relative_to(ROOT).parts[: -node.level])
                base = ".".join(package + ([base] if base else []))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def layer_of(module: str) -> str | None:
    """The layer a module of the package belongs to: its folder, or config for a file directly in hacl/."""
    parts = module.split(".")
    if parts[0] != "hacl" or len(parts) == 1 or parts[1].startswith("__"):
        return None
    if parts[1] == "pocket" and WORLD.intersection(parts[2:3]):
        return "world"
    return "config" if (ROOT / "hacl" / f"{parts[1]}.py").exists() else parts[1]


def test_each_layer_imports_only_the_layers_below_it():
    wrong = []
    for path in PACKAGE_FILES:
        own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert own is None or own in LAYERS, f"{name_of(path)}: say in LAYERS what hacl.{own} may import"
        allowed = LAYERS[own] | {own} if own else set()
        for line, module in imports_of(path):
            layer = layer_of(module)
            if own == "report" and module.startswith(RESULTS):
                continue
            if layer is not None and layer not in allowed:
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_package_never_imports_commands_or_tests():
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in SOURCE_FILES
        for line, module in imports_of(path)
        if module.split(".")[0] in {"scripts", "data_prep", "train", "tests"}
    ]
    assert not wrong, "\n".join(wrong)


def test_losses_import_only_torch_einops_and_the_standard_library():
    allowed = {"torch", "einops", "hacl", *sys.stdlib_module_names}
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in PACKAGE_FILES
        if path.is_relative_to(ROOT / "hacl" / "losses")
        for line, module in imports_of(path)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def torch_free_files() -> list[Path]:
    return [p for p in PACKAGE_FILES if any(p.is_relative_to(ROOT / "hacl" / entry) for entry in TORCH_FREE)]


def test_records_generators_scorers_and_reports_never_import_torch():
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in torch_free_files()
        if path not in {ROOT / "hacl" / name for name in LATE_WEIGHTS}
        for line, module in imports_of(path)
        if module.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_torch_free_modules_loads_nothing_heavy():
    names = [name_of(path).removesuffix(".py").removesuffix("/__init__") for path in torch_free_files()]
    modules = [name.replace("/", ".") for name in names]
    program = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    loaded = {HEAVY!r} & set(sys.modules)
    assert not loaded, f"{{module}} loads {{sorted(loaded)}}"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [path for path in COMMANDS if path.exists()], ids=name_of)
def test_every_command_explains_itself_without_loading_torch(path):
    program = f"""
import runpy, sys
sys.argv = [{path.name!r}, "--help"]
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, None), f"--help ended with {{stop.code}}"
loaded = {HEAVY!r} & set(sys.modules)
assert not loaded, f"--help loads {{sorted(loaded)}}"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "--help prints nothing"


def test_files_stay_small_enough_to_hold_in_the_head():
    long = {
        name_of(path): lines
        for path in [*SOURCE_FILES, *sorted((ROOT / "tests").rglob("*.py"))]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= 400
    }
    assert not long, f"split these: {long}"


def test_every_module_says_what_it_is_responsible_for():
    silent = [name_of(path) for path in SOURCE_FILES if not ast.get_docstring(tree_of(path))]
    assert not silent, f"no module docstring: {silent}"


def test_environment_yml_and_pyproject_describe_the_same_environment():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert {Requirement(entry).name for entry in plain} == {"python", "pip"}, "the rest belongs in pyproject.toml"
    python = next(Requirement(entry) for entry in plain if Requirement(entry).name == "python")
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert pip == ["-e .[dev]"]
    assert "dev" in PROJECT["optional-dependencies"]


def test_the_torch_pair_is_pinned_exactly():
    pins = {(r := Requirement(line)).name: str(r.specifier) for line in PROJECT["dependencies"]}
    for name in ("torch", "torchvision"):
        assert re.fullmatch(r"==\d+\.\d+\.\d+", pins[name]), f"{name}{pins[name]} lets pip swap builds"


def test_pyproject_and_set_up_accept_the_same_pythons():
    lower, upper = re.search(r"\((\d, \d+)\) <= sys.version_info\[:2\] < \((\d, \d+)\)",
                             (ROOT / "scripts" / "setup.sh").read_text()).groups()  # fmt: skip
    expected = SpecifierSet(f">={lower.replace(', ', '.')},<{upper.replace(', ', '.')}")
    assert SpecifierSet(PROJECT["requires-python"]) == expected
