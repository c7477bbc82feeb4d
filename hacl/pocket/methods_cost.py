"""What each method of the comparison costs, counted and not timed: training, making the vectors, each new token.

FLOPs are those of matrix products and convolutions (torch's counter); adding a vector is not among them. The frozen
tower is counted once per image where its features are cached, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from hacl.compare.behaviour_tasks import Tasks, Variant, generate
from hacl.compare.divergence import Setting
from hacl.compare.forced import Side
from hacl.data.records import Record
from hacl.evaluation.runner.decoding import Decoding, VisualContrast
from hacl.pocket.experiment import config_of
from hacl.pocket.methods_fit import contrast, states
from hacl.pocket.methods_run import LAYERS, MethodsUnit
from hacl.steering import Steerer

COUNTED = 32  # records or captions that a count is taken over
NEW_TOKENS = 12  # of every counted caption


def training_flops(unit: MethodsUnit, arm: str) -> float:
    """Of one tuning run of an arm with a configuration in configs/pocket, from the dry run."""
    from dataclasses import replace

    from hacl.training.dryrun import predict

    config = config_of(replace(unit, arm=arm))
    return predict(config).tflops * 1e12 * config.train.max_steps * config.train.chunks_per_step


def extraction_flops(model, processor, records: Sequence[Record], root: Path, folder: Path) -> dict[str, float]:
    """Per record: "contrast" (true against hallucinated captions) and "states" (of the true caption, one model)."""
    found = {}
    for name, read in (("contrast", contrast), ("states", states)):
        with FlopCounterMode(display=False) as counter:
            read(model, processor, records[:COUNTED], root, folder / name, COUNTED)
        found[name] = counter.get_total_flops() / len(records[:COUNTED])
    return found


def token_ratios(side: Side, tasks: Tasks, steerers: Mapping[str, Steerer]) -> dict[str, float]:
    """FLOPs of generating captions over those of the unsteered model, prompt and image included; "vcd" among them.

    Every method is counted at the layers of the grid where it costs most.
    """
    samples = tasks.captions[:COUNTED]
    fixed = Decoding(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)

    def count(variant: Variant | None = None, decoding: Decoding = fixed) -> int:
        with FlopCounterMode(display=False) as counter:
            generate(side, samples, NEW_TOKENS, variant=variant, batch_size=COUNTED, decoding=decoding)
        return counter.get_total_flops()

    plain = count()
    found = {"vcd": count(decoding=Decoding(NEW_TOKENS, NEW_TOKENS, vcd=VisualContrast())) / plain}
    for name, steerer in steerers.items():
        counts = [count(Variant(Setting(name, 1.0, layers, "all"), steerer)) for layers in LAYERS]
        found[name] = max(counts) / plain
    return found


def costs(
    training: Mapping[str, float], extraction: Mapping[str, float], tokens: Mapping[str, float], fitted: int
) -> dict[str, dict[str, Any]]:
    """{method: training and extraction in FLOPs (None: none), token: ratio to the unsteered model}.

    Training is what comes on top of the shared base. A steering method also pays for the control it steers; a shift
    also for the tuned model whose states it reads, and for reading two models.
    """
    found = {name: {"training": flops, "extraction": None, "token": 1.0} for name, flops in training.items()}
    found["base"] = {"training": None, "extraction": None, "token": 1.0}
    control = training["control"]
    for name, ratio in tokens.items():
        shifted = name.removeprefix("shift_") if name.startswith("shift_") else None
        made = None if name == "vcd" else fitted * (2 * extraction["states"] if shifted else extraction["contrast"])
        found[name] = {
            "training": control + (training[shifted] if shifted else 0.0), "extraction": made, "token": ratio,
        }  # fmt: skip
    found["prompt"] = {"training": control, "extraction": None, "token": 1.0}
    return found
