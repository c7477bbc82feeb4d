"""A tiny model and its "tuned" copy, of which it is known what the tuning did: a change of one block's output.

Shapes: K concepts, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hacl.compare.behaviour_tasks import Tasks
from hacl.data.records import read_records
from hacl.evaluation.pope import build_questions
from hacl.models.adapters import find_adapter
from hacl.representations.samples import Sample
from tests.reference.steering_inputs import WIDTH, load
from tests.tiny import SHAPES, write_tiny_records

LAYER = 0


@dataclass(frozen=True)
class World:
    """original, processor: a tiny model; samples: a caption each, of 16 images; tasks: everything that can be asked."""

    original: torch.nn.Module
    processor: object
    samples: list[Sample]
    tasks: Tasks


def make_world(model_folder: Path, folder: Path, count: int = 16) -> World:
    from transformers import AutoProcessor

    records = read_records(write_tiny_records(folder, count))
    truth = {r.image_id: [next(s for s in SHAPES if s in r.captions[0])] for r in records}
    images = {r.image_id: folder / r.images[0] for r in records}
    samples = [Sample(r.id, images[r.image_id], "describe the image", r.captions[0], r.image_id) for r in records]
    tasks = Tasks(
        captions=samples, truth=truth, vocabulary={word: word for word in SHAPES},
        questions={"random": build_questions(truth, "random", template="is there {article} {object} in the image ?")},
        images=images, margins=records, image_root=folder, margin_prompt="describe the image",
        outside=[Sample(f"text-{i}", None, f"what colour is {word}") for i, word in enumerate(SHAPES)],
        max_new_tokens=8,
    )  # fmt: skip
    return World(load(model_folder), AutoProcessor.from_pretrained(model_folder), samples, tasks)


def tuned_by(world: World, change: Callable[[Tensor], Tensor], layer: int = LAYER):
    """A copy whose block `layer` puts out change(output), for good."""
    model = copy.deepcopy(world.original)
    block = find_adapter(model).blocks[layer]
    block.register_forward_hook(
        lambda m, a, o: (change(o[0]), *o[1:]) if isinstance(o, tuple) else change(o), prepend=True
    )
    return model


def constant(size: float = 3.0, seed: int = 1) -> Tensor:
    return size * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def by_concept(centres_KD: Tensor, shifts_KD: Tensor) -> Callable[[Tensor], Tensor]:
    """Adds the shift of the nearest centre."""

    def change(h_RTD: Tensor) -> Tensor:
        nearest = (h_RTD[..., None, :] - centres_KD).square().sum(-1).argmin(-1)
        return h_RTD + shifts_KD[nearest]

    return change


@contextmanager
def block_output(model, layer: int) -> Iterator[list[Tensor]]:
    """Collects what block `layer` puts out, after all other hooks."""
    found: list[Tensor] = []
    handle = (
        find_adapter(model)
        .blocks[layer]
        .register_forward_hook(lambda m, a, o: found.append(o[0] if isinstance(o, tuple) else o))
    )
    try:
        yield found
    finally:
        handle.remove()
