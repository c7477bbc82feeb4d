#!/usr/bin/env bash
# Create or update the Python environment of this project, saying what each step does.
#
#   bash scripts/setup.sh          what running needs
#   bash scripts/setup.sh dev      the same, and what testing needs
#
# The torch and torchvision pins are read from pyproject.toml. An environment that already holds
# another torch is refused, never changed: which build of torch you run is your decision.
#
# HACL_VENV         folder of the environment, relative to the checkout unless absolute (default .venv)
# HACL_PYTHON       interpreter that creates it (default: the first usable python3.11, python3.12, python3)
# HACL_TORCH_INDEX  package index for torch and torchvision alone, for example the CPU-only index that
#                   PyTorch's install page names (default: pip's own index)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[setup] %s\n' "$*"; }
refuse() { printf '[setup] stopped: %s\n' "$1" >&2; shift; printf '[setup]          %s\n' "$@" >&2; exit 1; }

extra="${1:-}"
case "$extra" in
  "" | dev) ;;
  *) refuse "unknown extra '$extra'" "use: bash scripts/setup.sh [dev]" ;;
esac

venv="${HACL_VENV:-.venv}"
python="$venv/bin/python"

# A usable interpreter has the right version and, to create an environment, the ensurepip module.
has_right_version() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }
can_create() { has_right_version "$1" && "$1" -c 'import ensurepip, venv' 2>/dev/null; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "an unknown version"; }

find_python() {
  local candidate
  if [ -n "${HACL_PYTHON:-}" ]; then
    command -v "$HACL_PYTHON" >/dev/null || refuse "HACL_PYTHON=$HACL_PYTHON is not a program" "name a Python 3.11 or 3.12"
    has_right_version "$HACL_PYTHON" || refuse "HACL_PYTHON=$HACL_PYTHON is $(version_of "$HACL_PYTHON")" \
      "this project runs on Python 3.11 or 3.12"
    can_create "$HACL_PYTHON" || refuse "$HACL_PYTHON cannot create an environment: it has no ensurepip" \
      "on Debian and Ubuntu install python3-venv"
    base_python="$HACL_PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3 python; do
    if can_create "$candidate"; then base_python="$candidate"; return; fi
  done
  refuse "no Python 3.11 or 3.12 that can create an environment was found (python3 is $(version_of python3))" \
    "install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name one: HACL_PYTHON=/path/to/python3.11"
}

# Prints the version of an installed distribution, or nothing.
installed() { "$python" -c 'import importlib.metadata as m, sys
try: print(m.version(sys.argv[1]))
except m.PackageNotFoundError: pass' "$1"; }

# Prints the version pyproject.toml pins a distribution to.
pinned() { "$python" -c 'import sys, tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    name, _, version = line.partition("==")
    if name.strip() == sys.argv[1] and version: print(version.strip())' "$1"; }

# 1. the environment
if [ ! -e "$venv" ]; then
  find_python
  say "creating $venv with $base_python ($(version_of "$base_python"))"
  "$base_python" -m venv "$venv"
elif [ ! -x "$python" ]; then
  refuse "$venv exists but is no Python environment (no bin/python that runs)" "remove it, or set HACL_VENV to another folder"
elif ! has_right_version "$python"; then
  refuse "$venv holds Python $(version_of "$python"); this project runs on Python 3.11 or 3.12" \
    "remove it, or set HACL_VENV to another folder"
fi

# 2. the torch pair: install it where it is missing, keep it where it fits, refuse it where it differs
missing=()
for name in torch torchvision; do
  pin="$(pinned "$name")"
  [ -n "$pin" ] || refuse "pyproject.toml has no exact pin for $name" "restore a line like $name==X.Y.Z"
  have="$(installed "$name")"
  if [ -z "$have" ]; then
    missing+=("$name==$pin")
  elif [ "${have%%+*}" != "$pin" ]; then
    refuse "$venv holds $name $have, this project is pinned to $name $pin, and set-up does not swap builds" \
      "remove $venv, or set HACL_VENV to another folder, or change $name there yourself"
  fi
done

# 3. up to date? The stamp names the project file, this script, the checkout and the extra.
digest="$(cat pyproject.toml scripts/setup.sh | "$python" -c 'import hashlib, os, sys
print(hashlib.sha256(sys.stdin.buffer.read() + os.getcwd().encode()).hexdigest())')"
stamp="$venv/.hacl-setup"
done_before="$(cat "$stamp" 2>/dev/null || true)"
if [ "${#missing[@]}" -eq 0 ] && { [ "$done_before" = "$digest dev" ] || [ "$done_before" = "$digest $extra" ]; }; then
  say "$venv is up to date (Python $(version_of "$python"), torch $(installed torch))"
  exit 0
fi
"$python" -m pip --version >/dev/null 2>&1 || refuse "$venv has no pip" "remove it, or run: $python -m ensurepip"

if [ "${#missing[@]}" -gt 0 ]; then
  say "installing ${missing[*]} into $venv (the default build takes about 5 GB of disk and a few minutes)"
  index=()
  if [ -n "${HACL_TORCH_INDEX:-}" ]; then index=(--index-url "$HACL_TORCH_INDEX"); say "from HACL_TORCH_INDEX"; fi
  "$python" -m pip install ${index[@]+"${index[@]}"} "${missing[@]}"
elif [ -n "${HACL_TORCH_INDEX:-}" ]; then
  say "HACL_TORCH_INDEX is not used: $venv already holds torch $(installed torch)"
fi

# 4. the project. The constraint makes pip fail where it would otherwise replace the pair.
torch_before="$(installed torch)"
constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
printf 'torch==%s\ntorchvision==%s\n' "$torch_before" "$(installed torchvision)" >"$constraints"
say "installing this project${extra:+ with its '$extra' extra} into $venv"
"$python" -m pip install --constraint "$constraints" -e ".${extra:+[$extra]}"

torch_after="$(installed torch)"
[ "$torch_before" = "$torch_after" ] || refuse "pip replaced torch $torch_before by $torch_after in $venv" \
  "remove $venv and start again"
printf '%s %s\n' "$digest" "$extra" >"$stamp"
say "done: Python $(version_of "$python"), torch $torch_after in $venv"
