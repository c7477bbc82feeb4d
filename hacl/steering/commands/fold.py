"""`steer.py fold`: a constant shift written into a checkpoint's biases."""

from __future__ import annotations

from argparse import Namespace

from hacl.models.identity import model_folder
from hacl.steering.commands.extract import layer_keys
from hacl.steering.fold import fold
from hacl.steering.vectors import load_steerer


def run(options: Namespace) -> int:
    """Fold, verify, say by how much the two differ."""
    folder = model_folder(options.model)
    steerer = load_steerer(options.path, model=folder)
    layers = layer_keys(options.layers) if options.layers else None
    record = fold(steerer, folder, options.out, layers=layers, alpha=options.alpha)
    print(
        f"{record['class']}: layers {', '.join(map(str, record['layers']))}, alpha {record['alpha']:g}; "
        f"logits differ by {record['max_logit_difference']:.2g} from the steered model, which differs by "
        f"{record['max_logit_change']:.2g} from the original"
    )
    print(f"written: {options.out}")
    return 0
