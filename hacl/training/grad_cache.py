"""One contrastive batch over a whole accumulation window, in the memory of one micro-batch (GradCache).

Gao et al., arXiv 2101.06983, section 3.2. A first pass encodes every micro-batch without a graph and keeps the features
after the heads; the contrastive loss of all of them, over all ranks, is taken back to the features and to the
temperature, and no further. The ordinary pass of the trainer then adds the inner product of each micro-batch's features
with their cached gradients to its generation loss: its backward gives every parameter, heads included, the gradient of
the contrastive loss, and the temperature enters with the first micro-batch alone. The random state of a micro-batch is
the same in both passes, so dropout is; what the first pass wrote into buffers (running statistics of batch norm) is
undone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from hacl.training.contrastive_step import FEATURES, LOSS, SCALE, Features, Report, concatenate


class Window:
    """The micro-batches of one optimizer step: `open` it, then `take` the cached gradients of each in order.

    model: the HaclModel itself. Its hooks (ZeRO-3) and its autocast run, and what data parallel wrappers do to prepare
    a backward does not. batches: what the loader gives.
    """

    def __init__(self, model, batches: list[dict[str, Tensor]]):
        self.model = model
        self.is_open = False
        self._batches = batches
        self._chunks: deque[tuple[RandomState, Features]] = deque()

    def open(self, prepare: Callable[[dict], dict]) -> Report:
        """The first pass and the contrastive loss; returns its report.

        prepare: puts a batch on the device of the model. With several ranks all must call this together, with equally
        many micro-batches (`hacl.training.accumulation`).
        """
        device = next(self.model.parameters()).device
        self.model.train()
        buffers = WrittenBuffers(self.model)
        states, parts = [], []
        with torch.no_grad():
            for batch in self._batches:
                states.append(RandomState(device))
                parts.append(self.model(**prepare(batch), only_features=True).features)
        buffers.restore()
        output = self.model(window=concatenate(parts))
        self._chunks.extend(zip(states, _shares(output.features, [len(p["image"]) for p in parts]), strict=True))
        self.is_open = True
        return output.report

    def take(self) -> Features:
        """Cached gradients of the next micro-batch, for `HaclModel.forward`; restores the random state of its first
        pass."""
        state, gradients = self._chunks.popleft()
        state.restore()
        return gradients


def _shares(gradients: Features, sizes: list[int]) -> list[Features]:
    """What each micro-batch takes of the gradients of the window, times their number: the trainer takes their mean."""
    count = len(sizes)
    rows = {name: (gradients[name] * count).split(sizes) for name in FEATURES}
    scale = gradients[SCALE] * count
    return [
        {name: rows[name][i] for name in FEATURES}
        | {SCALE: scale if i == 0 else torch.zeros_like(scale), LOSS: gradients[LOSS]}
        for i in range(count)
    ]


class WrittenBuffers:
    """What a forward pass in training may write besides gradients: buffers (running statistics of batch norm) of the
    modules that are in training mode now."""

    def __init__(self, model: torch.nn.Module):
        training = [module for module in model.modules() if module.training]
        self._kept = [(buffer, buffer.clone()) for module in training for buffer in module.buffers(recurse=False)]

    @torch.no_grad()
    def restore(self, where: Tensor | None = None) -> None:
        """Write the copies back; not where a boolean 0-d tensor is given and false. A backward pass may follow: in
        training mode it takes the statistics of its batch, not these buffers."""
        for buffer, value in self._kept:
            buffer.data.copy_(value if where is None else torch.where(where, value, buffer))


class RandomState:
    """What torch draws from next, on the CPU and on one device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
