"""Promises about the source: nothing opens pickles, runs strings, starts shells or trusts code that comes with a model.

Syntax trees are searched, so comments and texts fool nothing, and names are resolved through imports, so that
`from os import system as s; s(x)` is `os.system(x)`.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.test_project import SOURCE_FILES, name_of, tree_of

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
PARSERS = {"xml", "lxml", "plistlib"}  # expand entities
NEVER = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "numpy.fromfile",
    "shutil.unpack_archive", "tempfile.mktemp", "code.interact", "pty.spawn", "ctypes.CDLL", "runpy.run_path",
    "ssl._create_unverified_context", "datasets.load_from_disk",
}  # fmt: skip
NEVER_NAMED = {"yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader"}
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
METHODS = {"extractall", "unpickle"}  # of anything: an archive, a reader
RUN = {"subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output"}
OFF = {"shell", "allow_pickle", "trust_remote_code", "load_from_pickle"}  # arguments that may only be false
FOREIGN = "hacl/models/foreign.py"
# Weights in other forms, which hold no code either: a GGUF file; the published CLIP tower, tensors of torch.save, which
# transformers opens with weights_only.
OTHER_WEIGHTS = {"hacl/models/wheel_weights.py": 1, "hacl/training/interchange.py": 1}


def aliases_of(tree: ast.AST) -> dict[str, str]:
    """Name in the module -> what it was imported as."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def resolved(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of an expression, through imports and getattr(x, "constant"); else its source."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{resolved(node.value, names)}.{node.attr}"
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    ):
        return f"{resolved(node.args[0], names)}.{node.args[1].value}"
    return ast.unparse(node)


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in (False, None)


def wrong_import(node: ast.Import | ast.ImportFrom) -> str | None:
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    for module in modules:
        if module.split(".")[0] in PICKLES:
            return f"imports {module}, which reads pickles"
        if module.split(".")[0] in PARSERS:
            return f"imports {module}, whose parser expands entities"
    return None


def wrong_call(node: ast.Call, names: dict[str, str]) -> str | None:
    called = resolved(node.func, names)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if called in NEVER or called.startswith(PREFIXES):
        return f"calls {called}"
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        return f"calls .{node.func.attr}"
    if called == "torch.load":
        only = given.get("weights_only")
        if not (isinstance(only, ast.Constant) and only.value is True):
            return "torch.load without weights_only=True"
    if called in RUN and node.args and not isinstance(node.args[0], (ast.List, ast.Name, ast.Call, ast.BinOp)):
        return f"{called} of {ast.unparse(node.args[0])}, no list of words"
    for name in OFF & given.keys():
        if not is_false(given[name]):
            return f"{name}={ast.unparse(given[name])}"
    if called.endswith(".from_pretrained") and _opens_weights(called, node):
        safe = given.get("use_safetensors")
        if not (isinstance(safe, ast.Constant) and safe.value is True):
            return f"{called} without use_safetensors=True"
    return None


def _opens_weights(called: str, node: ast.Call) -> bool:
    owner = called.removesuffix(".from_pretrained").split(".")[-1]
    return "Model" in owner and "Peft" not in owner or "auto_class" in owner or "For" in owner


def forbidden(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, what is wrong) of a module."""
    names, found = aliases_of(tree), []
    for node in ast.walk(tree):
        why = None
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            why = wrong_import(node)
        elif isinstance(node, ast.Call):
            why = wrong_call(node, names)
        elif isinstance(node, ast.Attribute | ast.Name) and resolved(node, names) in NEVER_NAMED:
            why = f"names {resolved(node, names)}"
        elif isinstance(node, ast.Dict):
            bad = [k.value for k, v in zip(node.keys, node.values, strict=True)
                   if isinstance(k, ast.Constant) and k.value in OFF and not is_false(v)]  # fmt: skip
            why = f"a dictionary that switches {bad[0]} on" if bad else None
        if why:
            found.append((node.lineno, why))
    return found


SEEN = [
    "import pickle",
    "from pickle import loads",
    "import joblib as j",
    "import dill.source",
    "import _pickle",
    "import xml.etree.ElementTree as ET",
    "from lxml import etree",
    "import torch\ntorch.load(p)",
    "import torch\ntorch.load(p, weights_only=False)",
    "import torch\ntorch.load(p, weights_only=flag)",
    "import torch as t\nt.load(p)",
    "from torch import load\nload(p)",
    "from torch import load as l\nl(p)",
    "import torch\ngetattr(torch, 'load')(p)",
    "import torch.hub\ntorch.hub.load('a', 'b')",
    "from torch import hub\nhub.load('a')",
    "import yaml\nyaml.load(f)",
    "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
    "import yaml as y\ny.unsafe_load(f)",
    "from yaml import UnsafeLoader\nUnsafeLoader(f)",
    "import yaml\nclass L(yaml.Loader): pass",
    "from yaml import full_load\nfull_load(f)",
    "import subprocess\nsubprocess.run(c, shell=True)",
    "import subprocess\nsubprocess.run('ls')",
    "import subprocess\nsubprocess.Popen(f'ls {x}')",
    "from subprocess import run\nrun(c, shell=flag)",
    "import os\nos.system('x')",
    "from os import system as s\ns('x')",
    "import os\nos.execvp('a', b)",
    "import os\ngetattr(os, 'popen')('x')",
    "import numpy as np\nnp.load(p, allow_pickle=True)",
    "import numpy\nnumpy.load(p, allow_pickle=flag)",
    "import pandas as pd\npd.read_pickle(p)",
    "eval(s)",
    "exec(s)",
    "compile(s, 'f', 'exec')",
    "__import__(name)",
    "import builtins\nbuiltins.eval(s)",
    "AutoModel.from_pretrained(p, use_safetensors=True, trust_remote_code=True)",
    "AutoProcessor.from_pretrained(p, trust_remote_code=flag)",
    "options = {'trust_remote_code': True}",
    "f(**{'allow_pickle': flag})",
    "AutoModel.from_pretrained(p)",
    "LlavaForConditionalGeneration.from_pretrained(p)",
    "AutoModel.from_pretrained(p, use_safetensors=False)",
    "auto_class(p).from_pretrained(p)",
    "tar.extractall(p)",
    "import shutil\nshutil.unpack_archive(a)",
    "import tempfile\ntempfile.mktemp()",
]
LEFT_ALONE = [
    "import torch\ntorch.load(p, weights_only=True)",
    "import yaml\nyaml.safe_load(f)",
    "model.eval()",
    "import re\nre.compile(p)",
    "block.compile(backend=b)",
    "import subprocess\nsubprocess.run([a, b], shell=False)",
    "import subprocess\nsubprocess.run(command)",
    "# import pickle",
    "'eval(s); torch.load(p)'",
    "AutoModel.from_pretrained(p, use_safetensors=True, trust_remote_code=False)",
    "AutoTokenizer.from_pretrained(p)",
    "PeftModel.from_pretrained(m, p)",
    "import json\njson.load(f)",
    "import numpy as np\nnp.load(p)",
    "import importlib\nimportlib.import_module(f'{__name__}.{m}')",
]


@pytest.mark.parametrize("code", SEEN)
def test_the_search_sees(code):
    assert forbidden(ast.parse(code))


@pytest.mark.parametrize("code", LEFT_ALONE)
def test_the_search_leaves_alone(code):
    assert not forbidden(ast.parse(code))


def test_no_source_file_opens_pickles_runs_strings_or_trusts_foreign_code():
    wrong, others = [], Counter()
    for path in SOURCE_FILES:
        for line, why in forbidden(tree_of(path)):
            if name_of(path) in OTHER_WEIGHTS and why.endswith("without use_safetensors=True"):
                others[name_of(path)] += 1
            else:
                wrong.append(f"{name_of(path)}:{line} {why}")
    assert not wrong, "\n".join(wrong)
    assert others == OTHER_WEIGHTS


def names_torch_load(path: Path) -> bool:
    tree = tree_of(path)
    names = aliases_of(tree)
    return any(
        isinstance(node, ast.Attribute | ast.Name) and resolved(node, names) == "torch.load" for node in ast.walk(tree)
    )


def test_files_that_others_saved_are_opened_in_one_place():
    assert [name_of(path) for path in SOURCE_FILES if names_torch_load(path)] == [FOREIGN]
