#!/usr/bin/env bash
# Train on several nodes: run the same line on every one of them.
#
#   bash scripts/launch_nodes.sh --nodes 2 --head node0:29500 -- configs/llava15_7b/stage2.yaml data.path=captions.jsonl
#
#   --nodes N       nodes of the job (default 1)
#   --per-node N    processes on this node (default: its GPUs, or 1 without any)
#   --head H:P      where the agents meet: a node of the job and a free port (default localhost:29500)
#   --id NAME       the same word on every node, another one for every job that runs at the same time (default hacl)
#   --restarts N    restarts of all processes after one has died, from the newest complete checkpoint (default 3)
#   --local-addr A  address of this node, where its name does not resolve
#   --dry-run       print the command and stop
# Everything after -- goes to train.py. PYTHON names another interpreter.
#
# SIGUSR1 to this script reaches the training processes of the node, all ranks save and leave with status 0, and the same
# line goes on from there. torchrun itself would die of that signal. (Leave train.preempt_exit_code at 0: torchrun starts
# processes anew that leave with another.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nodes=1 per_node="" head=localhost:29500 id=hacl restarts=3 local_addr="" dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    --nodes) nodes=$2; shift 2 ;;
    --per-node) per_node=$2; shift 2 ;;
    --head) head=$2; shift 2 ;;
    --id) id=$2; shift 2 ;;
    --restarts) restarts=$2; shift 2 ;;
    --local-addr) local_addr=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' scripts/launch_nodes.sh; exit 0 ;;
    --) shift; break ;;
    *) echo "error: unknown option $1; options for train.py come after --" >&2; exit 2 ;;
  esac
done
if [ $# -eq 0 ]; then
  echo "error: no configuration; give it after --, e.g. -- configs/llava15_7b/stage1.yaml data.path=captions.jsonl" >&2
  exit 2
fi
if [ -z "$per_node" ]; then
  per_node=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || per_node=0
  [ "$per_node" -gt 0 ] || per_node=1
fi
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# DeepSpeed compiles its kernels once per node, on that node's own disk: a shared home would be written by all at once.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions_$(id -u)}"

# A store of its own for every start of the processes: the agent's, which is the default, still holds the addresses of
# those that died, and a new process that reads one before it is replaced is refused.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

command=("$python" -m torch.distributed.run
  --nnodes "$nodes" --nproc-per-node "$per_node" --max-restarts "$restarts"
  --rdzv-backend c10d --rdzv-endpoint "$head" --rdzv-id "$id")
if [ -n "$local_addr" ]; then command+=(--local-addr "$local_addr"); fi
command+=(train.py "$@")

if [ -n "$dry" ]; then
  printf 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 TORCH_EXTENSIONS_DIR=%q OMP_NUM_THREADS=%q' \
    "$TORCH_EXTENSIONS_DIR" "$OMP_NUM_THREADS"
  printf ' %q' "${command[@]}"
  printf '\n'
  exit 0
fi

# Processes that still load ignore the signal, as they inherit it from the agent, so it is repeated until all have left.
pass_on() {
  trap '' USR1
  while kill -0 "$agent" 2>/dev/null; do
    for process in $(pgrep -P "$agent"); do kill -USR1 "$process" 2>/dev/null || true; done
    sleep 2
  done &
}
trap pass_on USR1
(trap '' USR1 && exec "${command[@]}") &  # ignored by the agent, which has no use for it; train.py sets its own handler
agent=$!
trap 'kill -TERM "$agent" 2>/dev/null || true' TERM INT
status=0
while kill -0 "$agent" 2>/dev/null; do  # a trapped signal ends a wait early
  status=0
  wait "$agent" || status=$?
done
exit "$status"
