"""True and false sentences that people wrote (nlvr-mini): is a sentence likelier with a drawing that it is true of?

Every sentence is read twice, with a drawing that it is true of and with one that it is false of, so what the language
model prefers by wording is the same on both sides. (Suhr et al., 2017, Cornell NLVR.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hacl.evaluation.reports import ScoreReport

DATA_FOLDER = "nlvr-mini"


@dataclass(frozen=True)
class SentencePair:
    """A sentence with a drawing that it is true of and one that it is false of (file names)."""

    sentence: str
    true_image: str
    false_image: str


def find_nlvr() -> Path:
    """The folder of nlvr-mini. Raises FileNotFoundError when HACL_DATA does not lead to it."""
    root = os.environ.get("HACL_DATA")
    if not root or not (Path(root) / DATA_FOLDER).is_dir():
        raise FileNotFoundError(f"no {DATA_FOLDER} folder: set HACL_DATA to the folder that holds it (now {root!r})")
    return Path(root) / DATA_FOLDER


def read_pairs(folder: Path, limit: int | None = None) -> list[SentencePair]:
    """One pair for each sentence that has both labels, in the order of the file; of several drawings the first."""
    found: dict[str, dict[bool, str]] = {}
    for line in (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["sentence"], {}).setdefault(bool(row["label"]), row["file_name"])
    pairs = [SentencePair(text, images[True], images[False]) for text, images in found.items() if len(images) == 2]
    return pairs[:limit]


def measure(model, processor, pairs: Sequence[SentencePair], folder: Path, *, batch_size: int = 32) -> ScoreReport:
    """Metrics: ``nlvr_accuracy``, share of sentences with more nats for the drawing they are true of (a tie is wrong,
    chance 0.5); ``nlvr_margin``, the mean difference in nats per token. One item a sentence."""
    from hacl.evaluation.likelihood import log_likelihoods

    images = [folder / "images" / name for pair in pairs for name in (pair.true_image, pair.false_image)]
    scores = log_likelihoods(
        model,
        processor,
        images,
        [pair.sentence for pair in pairs for _ in range(2)],
        batch_size=batch_size,
        progress="sentences",
    ).mean
    margins = [float(a - b) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    report = ScoreReport(meta={"scorer": "nlvr", "version": 1, "pairs": len(pairs)})
    report.items = [
        {"image_id": str(n), "sentence": pair.sentence, "margin": margin}
        for n, (pair, margin) in enumerate(zip(pairs, margins, strict=True))
    ]
    report.ratios = {
        "nlvr_accuracy": [(float(margin > 0), 1.0) for margin in margins],
        "nlvr_margin": [(margin, 1.0) for margin in margins],
    }
    report.metrics = {name: sum(top for top, _ in found) / len(found) for name, found in report.ratios.items()}
    return report


def compare(runs: Sequence[dict], arms: Sequence[str]) -> list[str]:
    """Lines of a table: accuracy of each arm over seeds and sentences, and its difference from the control.

    runs: {"arm", "seed", "items"}, items as `ScoreReport.by_image` gives them.
    """
    from hacl.evaluation.paired_tests import swap_test
    from hacl.evaluation.statistics import bootstrap_runs, format_interval, paired_difference

    tables = {(run["arm"], run["seed"]): run["items"]["nlvr_accuracy"] for run in runs}
    lines = []
    for arm in arms:
        own = {seed: table for (name, seed), table in tables.items() if name == arm}
        if not own:
            continue
        text = f"{arm}: {len(own)} seed(s), accuracy {format_interval(bootstrap_runs(list(own.values())))}"
        shared = sorted(seed for seed in own if ("control", seed) in tables)
        if arm != "control" and shared:
            sides = [own[seed] for seed in shared], [tables["control", seed] for seed in shared]
            text += (
                f"; minus control {format_interval(paired_difference(*sides), '+.3f')}, swap p {swap_test(*sides):.3f}"
            )
        lines.append(text)
    return lines
