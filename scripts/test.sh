#!/usr/bin/env bash
# Set up the environment with what testing needs, then run the tests.
#
#   bash scripts/test.sh                          everything a CPU can run, two workers
#   bash scripts/test.sh -n 0 tests/unit -k gap   options go to pytest, later ones win
#
# The tests need no network and no GPU. HACL_DATA names the folder of the photograph collections; tests
# that use them skip with a line that says so where it is not set. scripts/setup.sh describes HACL_VENV,
# HACL_PYTHON and HACL_TORCH_INDEX.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for argument in "$@"; do
  case "$argument" in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' scripts/test.sh; exit 0 ;; esac
done

bash scripts/setup.sh dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
printf '[test] running pytest\n'
exec "${HACL_VENV:-.venv}/bin/python" -m pytest -n 2 --dist loadfile "$@"
