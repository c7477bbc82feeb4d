"""States under teacher forcing in memory, and shifts of several layers estimated one after the other.

A shift at layer l moves everything after it, so the difference between the models at a later layer is partly made good
already. Measuring each layer on the stream that the earlier shifts have moved counts nothing twice.

Shapes: N states, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hacl.compare.behaviour_tasks import Variant
from hacl.compare.divergence import Setting
from hacl.compare.forced import ForcedReader, Side, forced_batches
from hacl.representations.parts import find_parts
from hacl.representations.samples import Sample
from hacl.steering import Steerer
from hacl.steering.layers import LayerKey, decoder_layers, final_norm_layer, resolve_layers

Pairs = dict[LayerKey, tuple[np.ndarray, np.ndarray]]
POSITIONS = ("answer", "last_prompt", "all")


def sequential_shifts(
    layers: Iterable[LayerKey],
    original: Callable[[Steerer | None, LayerKey], np.ndarray],
    tuned: Callable[[LayerKey], np.ndarray],
    build: Callable[[Pairs], Steerer],
) -> tuple[Steerer, Pairs]:
    """A steerer over several layers, and the pairs each layer was fitted on.

    layers: from the first to the last; original: states (N, D) of the original at a layer, under the steerer so far
    (None at first); tuned: the tuned model's states of the same rows; build: the method from {layer: (a, b)}, for
    example `LowRankSteerer.fit` or a mean of differences.

    Raises:
        ValueError: no layer, one twice, or rows that do not pair.
    """
    layers = list(layers)
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers={layers}: name at least one, and each once, from the first to the last")
    pairs: Pairs = {}
    steerer: Steerer | None = None
    for layer in layers:
        a_ND, b_ND = original(steerer, layer), tuned(layer)
        if a_ND.shape != b_ND.shape:
            raise ValueError(f"layer {layer!r}: states of shapes {a_ND.shape} and {b_ND.shape} are no pairs")
        pairs[layer] = (a_ND, b_ND)
        steerer = build(pairs)
    return steerer, pairs


def forced_states(
    side: Side,
    samples: Sequence[Sample],
    texts: Sequence[str],
    layers: Sequence[LayerKey],
    *,
    positions: str = "answer",
    steerer: Steerer | None = None,
    policy: str = "all",
    alpha: float = 1.0,
    batch_size: int = 16,
    progress: str = "",
) -> tuple[dict[LayerKey, np.ndarray], np.ndarray]:
    """({layer: fp32 (N, D)}, index (N) of the sample of each row), in the order of the samples.

    positions: "answer" (every state that predicts a token of the text, so the last prompt state is the first),
    "last_prompt" (one row per sample), or "all" (every attended token). With a steerer, states are read after its
    shifts, also those at the layer itself. For stores on disk, selectors and large runs see `hacl.representations`.

    Raises:
        ValueError: unknown positions, or a layer that the model does not have.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r}: {', '.join(POSITIONS)}")
    parts = find_parts(side.model)
    modules = resolve_layers(layers, decoder_layers(parts), final_norm_layer(parts))
    found: dict[LayerKey, list[Tensor]] = {layer: [] for layer in layers}
    owners: list[Tensor] = []
    variant = None if steerer is None else Variant(Setting(steerer.kind, alpha, None, policy), steerer)
    with side.open() as device, tqdm(total=len(samples), desc=progress, disable=not progress, leave=False) as bar:
        reader = ForcedReader(side, device)
        for batch in forced_batches(side, samples, texts, batch_size):
            row, column = _places(batch, positions)
            held: dict[LayerKey, Tensor] = {}
            with _recording(modules, held, row, column):
                embedded = reader.embed(batch)
                if variant is None:
                    reader.run(batch, embedded)
                else:
                    with variant.forced(side, batch):
                        reader.run(batch, embedded)
            for layer in layers:
                found[layer].append(held[layer])
            owners.append(torch.tensor(batch.rows)[row])
            bar.update(len(batch.rows))
    owner = torch.cat(owners)
    order = torch.argsort(owner, stable=True)
    return {layer: torch.cat(parts)[order].numpy() for layer, parts in found.items()}, owner[order].numpy()


def _places(batch, positions: str) -> tuple[Tensor, Tensor]:
    """Row and column of every state that is kept."""
    if positions == "all":
        return batch.mask_RT.nonzero(as_tuple=True)
    if positions == "last_prompt":
        return torch.arange(len(batch.rows)), torch.tensor(batch.prompts) - 1
    return batch.labels[:, 0], batch.labels[:, 1] - 1


class _recording:
    """Keeps the chosen rows of layers' outputs; its hooks run after those of sessions, which come first."""

    def __init__(self, modules, held: dict[LayerKey, Tensor], row: Tensor, column: Tensor):
        self.modules, self.held, self.row, self.column, self.handles = modules, held, row, column, []

    def __enter__(self) -> None:
        for key, layer in self.modules.items():
            self.handles.append(layer.module.register_forward_hook(self._hook(key)))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, key: LayerKey):
        def hook(module, args, output) -> None:
            h_RTD = output[0] if isinstance(output, tuple) else output
            self.held[key] = h_RTD[self.row.to(h_RTD.device), self.column.to(h_RTD.device)].float().cpu()

        return hook
