"""Two short trajectories of a tiny random model whose numbers are committed: an edit that changes them must be meant.

After a change that is meant, write them anew and commit the file with it:
    python -m tests.reference.trajectory
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
RELATIVE = 1e-4  # between processors; on one machine the numbers repeat exactly
STEPS = ["train.max_steps=10", "train.per_device_batch_size=8", "train.scheduler=cosine", "train.warmup=2"]
CASES = {
    "all weights, one batch": STEPS,
    "LoRA with dropout, four micro-batches in one contrastive batch": [
        *STEPS,
        "model.lora.rank=4",
        "model.lora.dropout=0.1",
        "objective.form=strict",
        "train.per_device_batch_size=2",
        "train.gradient_accumulation_steps=4",
        "train.grad_cache=true",
        "train.weight_decay=0.1",
    ],
}


def run_case(name: str, model: Path, folder: Path) -> dict[str, list[float]]:
    """The numbers of every step, by key."""
    from tests.tiny import write_tiny_records
    from tests.trajectories import RECORDS, trajectory

    records = write_tiny_records(folder / "records", **RECORDS)
    return trajectory(model, records, folder / "run", CASES[name])["steps"]


def main() -> None:
    from hacl.models.identity import versions
    from tests.tiny import build_tiny_model

    cases = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = run_case(name, build_tiny_model(Path(folder) / "model"), Path(folder))
    about = {"made_by": "python -m tests.reference.trajectory", "relative_tolerance": RELATIVE, "versions": versions()}
    FILE.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
