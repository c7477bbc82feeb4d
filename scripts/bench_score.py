"""Time and peak memory of the POPE and CHAIR scorers beside the obvious ways to compute the same figures.

  python scripts/bench_score.py --json bench.json           small, a smoke run of seconds
  python scripts/bench_score.py --full --json bench.json    1,000,000 answers and 100,000 captions, minutes

POPE is compared with a bare loop that parses the same two files and counts by line, and with parsing alone. CHAIR
(pattern dialect) is compared with the scheme of the published script, written anew: every caption tokenised and put in
the singular from nothing, and the vocabulary rebuilt for each word. Every run has its own process, runs alternate, and
medians over the runs are reported; time is CPU time without the start of Python and imports, peak memory has both. The
full size runs the slow scheme on fewer captions and compares time per caption.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPLIES = (
    "Yes", "No", "Yes, there is a dog in the image.", "No, there is no dog in the image.", "I don't know", "yes",
    "The image does not show a dog. It shows a street.",
)  # fmt: skip
FILLER = (
    "the a of in on with and is are there standing sitting near large small white wooden behind several next to image "
    "features scene which appears while another various background foreground creating lively atmosphere placed around"
).split()
IMAGES = 5000


def write_pope(folder: Path, size: int) -> None:
    """Questions and answers as upstream lays them out, six to an image."""
    draw = random.Random(0)
    with (folder / "questions.jsonl").open("w") as questions, (folder / "answers.jsonl").open("w") as answers:
        for n in range(size):
            text = "Is there a dog in the image?"
            image = f"COCO_val2014_{n // 6:012d}.jpg"
            row = {"question_id": n + 1, "image": image, "text": text, "label": "yes" if n % 2 else "no"}
            questions.write(json.dumps(row) + "\n")
            answers.write(json.dumps({"question_id": n + 1, "question": text, "answer": draw.choice(REPLIES)}) + "\n")


def write_chair(folder: Path, size: int) -> None:
    """Captions of 60 to 120 words with about ten object words each, and the objects of their images."""
    from hacl.evaluation.scorers.chair_words import HEADS, OBJECT_OF

    draw, words = random.Random(0), sorted(OBJECT_OF)
    truth = {str(n): draw.sample(sorted(HEADS), 6) for n in range(IMAGES)}
    (folder / "objects.json").write_text(json.dumps(truth))
    with (folder / "captions.jsonl").open("w") as file:
        for n in range(size):
            text = [draw.choice(words) + draw.choice(("", "s")) if draw.random() < 0.1 else draw.choice(FILLER)
                    for _ in range(draw.randrange(60, 121))]  # fmt: skip
            for stop in range(12, len(text), 15):
                text[stop] += draw.choice((".", ","))
            caption = " ".join(text).capitalize() + "."
            file.write(json.dumps({"image_id": n % IMAGES, "caption": caption}) + "\n")


def pope_scorer(folder: Path, limit: int) -> list[int]:
    from hacl.evaluation.scorers import score_to

    report = score_to(None, "pope", folder / "answers.jsonl", folder / "questions.jsonl")
    return [report.metrics[name] for name in ("TP", "FN", "FP", "TN")]


def pope_bare_loop(folder: Path, limit: int) -> list[int]:
    counts = [0, 0, 0, 0]
    with (folder / "questions.jsonl").open() as questions, (folder / "answers.jsonl").open() as answers:
        for question, answer in zip(questions, answers, strict=True):
            label, reply = json.loads(question)["label"], json.loads(answer)["answer"]
            words = reply.split(".")[0].replace(",", "").split(" ")
            no = "No" in words or "not" in words or "no" in words
            counts[2 * (label == "no") + no] += 1
    return counts


def pope_parsing_alone(folder: Path, limit: int) -> None:
    for name in ("questions.jsonl", "answers.jsonl"):
        with (folder / name).open() as file:
            for line in file:
                json.loads(line)


def chair_scorer(folder: Path, limit: int) -> float:
    from hacl.evaluation.scorers import score_to

    report = score_to(None, "chair", folder / "captions.jsonl", folder / "objects.json", dialect="pattern")
    return report.metrics["CHAIRi"]


def chair_published_scheme(folder: Path, limit: int) -> float:
    from hacl.evaluation.scorers.chair_tokens import sentences, split_sentence
    from hacl.evaluation.scorers.chair_words import JOINED, OBJECT_OF
    from hacl.evaluation.scorers.singular import singular

    vocabulary, truth = list(OBJECT_OF), json.loads((folder / "objects.json").read_text())
    mentioned = hallucinated = 0
    with (folder / "captions.jsonl").open() as file:
        for _, line in zip(range(limit), file, strict=False):
            row = json.loads(line)
            tokens = [token for part in sentences(row["caption"].lower()) for token in split_sentence(part)]
            words, joined, i = [singular(token) for token in tokens], [], 0
            while i < len(words):
                pair = " ".join(words[i : i + 2])
                joined.append(JOINED.get(pair, words[i]))
                i += 2 if pair in JOINED else 1
            if "toilet" in joined and "seat" in joined:
                joined = [word for word in joined if word != "seat"]
            found = [OBJECT_OF[word] for word in joined if word in set(vocabulary)]
            mentioned += len(found)
            hallucinated += sum(name not in truth[str(row["image_id"])] for name in found)
    return hallucinated / mentioned


TASKS = {
    "pope": (pope_scorer, pope_bare_loop, pope_parsing_alone),
    "chair": (chair_scorer, chair_published_scheme),
}
METHODS = {method.__name__: method for methods in TASKS.values() for method in methods}


def measure(name: str, folder: Path, limit: int) -> dict[str, float]:
    """One run in its own process: CPU seconds of work and peak memory in MB."""
    command = [sys.executable, __file__, "--run", name, str(folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def run_here(name: str, folder: str, limit: str) -> None:
    """What the process of one run does."""
    import hacl.evaluation.scorers.chair
    import hacl.evaluation.scorers.pope  # noqa: F401 - imports are no part of the time

    start = time.process_time()
    METHODS[name](Path(folder), int(limit))
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def compare(task: str, sizes: dict[str, int], folder: Path, repeats: int) -> dict[str, dict]:
    """Medians of alternating runs, and of the ratio of each way to the scorer within a round."""
    names = [method.__name__ for method in TASKS[task]]
    rounds = [{name: measure(name, folder, sizes[name]) for name in names} for _ in range(repeats)]
    found = {}
    for name in names:
        per_row = [turn[name]["seconds"] / sizes[name] for turn in rounds]
        own = [turn[names[0]]["seconds"] / sizes[names[0]] for turn in rounds]
        ratios = sorted(mine / other for mine, other in zip(own, per_row, strict=True))
        found[name] = {
            "rows": sizes[name],
            "seconds": statistics.median(turn[name]["seconds"] for turn in rounds),
            "microseconds_per_row": 1e6 * statistics.median(per_row),
            "peak_mb": max(turn[name]["peak_mb"] for turn in rounds),
            "scorer_over_this": {"median": statistics.median(ratios), "range": [ratios[0], ratios[-1]]},
        }
    return found


def hardware() -> dict[str, object]:
    import numpy

    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return {
        "cpu": model,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "system": platform.platform(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="1,000,000 answers, 100,000 captions")
    parser.add_argument("--answers", type=int, help="POPE answers (default: 20,000; with --full 1,000,000)")
    parser.add_argument("--captions", type=int, help="CHAIR captions (default: 1,000; with --full 100,000)")
    parser.add_argument("--slow-captions", type=int, default=1000, help="captions of the slow scheme (default: 1,000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of alternating runs (default: 3)")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        run_here(*options.run)
        return 0
    answers = options.answers or (1_000_000 if options.full else 20_000)
    captions = options.captions or (100_000 if options.full else 1_000)
    sizes = dict.fromkeys(METHODS, answers) | {"chair_scorer": captions}
    sizes["chair_published_scheme"] = min(captions, options.slow_captions)
    with tempfile.TemporaryDirectory() as name:
        write_pope(Path(name), answers)
        write_chair(Path(name), captions)
        results = {task: compare(task, sizes, Path(name), options.repeats) for task in TASKS}
    for figures in results.values():
        for method, row in figures.items():
            time_text = f"{row['seconds']:8.2f} s {row['microseconds_per_row']:9.2f} us/row"
            ratio = row["scorer_over_this"]["median"]
            print(f"{method:24} {row['rows']:>9} rows {time_text} {row['peak_mb']:6.0f} MB  scorer / this {ratio:.3f}")
    if options.json:
        content = {"hardware": hardware(), "repeats": options.repeats, "results": results}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
