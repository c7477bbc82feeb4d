#!/usr/bin/env bash
# Set up the environment, then run the whole pipeline on the pocket model and write report.html.
#
#   bash scripts/quickstart.sh               demonstration: one base model, three seeds, minutes on two cores
#   bash scripts/quickstart.sh --full        the run behind every verdict in the docs: hours
#
# Options after the script name go to `python scripts/pocket.py quickstart`. Safe to run twice: set-up is
# skipped while it is up to date. scripts/setup.sh describes HACL_VENV, HACL_PYTHON and HACL_TORCH_INDEX.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for argument in "$@"; do
  case "$argument" in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' scripts/quickstart.sh; exit 0 ;; esac
done

bash scripts/setup.sh
printf '[quickstart] running the pocket pipeline: python scripts/pocket.py quickstart %s\n' "$*"
exec "${HACL_VENV:-.venv}/bin/python" scripts/pocket.py quickstart "$@"
