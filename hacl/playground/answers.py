"""What a model answers at several strengths of steering: one request, one batch, one result.

Row 0 is unsteered; a strength of 0 leaves it bit for bit what the model says without any session.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import nn

from hacl.evaluation.generation import Generator, Reply
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.source import ModelSource, find_model
from hacl.models.adapters import find_adapter
from hacl.models.identity import HUB, parse_hub
from hacl.playground.artefacts import Artefact
from hacl.steering.calibrated import recording
from hacl.steering.flexac import FlexACSteerer
from hacl.steering.layers import LayerKey
from hacl.steering.session import Session, steering
from hacl.steering.steerer import Steerer
from hacl.steering.trace import SteeringWarning
from hacl.steering.vectors import load_steerer

CREATIVE = (
    "FlexAC above 0 is the creative side: it is unfaithful by design. Expect objects that are not in the image, and do "
    "not read this answer as a description."
)


@dataclass(frozen=True)
class Request:
    """What is asked, and how it is steered.

    layers: of the artefact's (of the model's where it serves any), None for all it has; policy: positions, None for
    the artefact's; sample_id: of the image's record, for methods with a vector per sample.
    """

    image: Image.Image
    prompt: str
    layers: tuple[LayerKey, ...] | None = None
    policy: str | None = None
    sample_id: str | None = None
    decoding: Decoding = field(default_factory=Decoding)


@dataclass(frozen=True)
class SteeredLayer:
    """What happened at one decoder block, in the steered rows together.

    tokens: steered tokens, each counted once per forward; positions: of the first steered row; step: mean |step| /
    |state|; gates, aligned, rotation: of FlexAC, by direction and in degrees, else empty and None.
    """

    index: int
    name: str
    tokens: int
    positions: tuple[int, ...]
    step: float | None
    gates: dict[str, float] = field(default_factory=dict)
    aligned: dict[str, float] = field(default_factory=dict)
    rotation: float | None = None


@dataclass(frozen=True)
class Result:
    """alphas: of the rows, 0 first; replies: one per row; prompt_tokens: of the prompt, image tokens included."""

    alphas: tuple[float, ...]
    replies: tuple[Reply, ...]
    layers: tuple[SteeredLayer, ...]
    policy: str
    prompt_tokens: int
    context_passes: int
    seconds: float
    notes: tuple[str, ...] = ()


class Speaker:
    """A model with its processor and template, and the artefacts it has opened. One request runs at a time."""

    def __init__(self, model: nn.Module, processor: Any, template: str = "plain"):
        self.model, self.processor, self.template = model, processor, template
        self.blocks = len(find_adapter(model).blocks)
        self._lock = threading.Lock()
        self._steerers: dict[str, Steerer] = {}

    def steerer(self, artefact: Artefact) -> Steerer:
        """The method in an artefact. Raises ArtefactError for one of another model, or damaged."""
        if artefact.name not in self._steerers:
            self._steerers[artefact.name] = load_steerer(artefact.folder, model=self.model)
        return self._steerers[artefact.name]

    def answer(self, steerer: Steerer, request: Request, alphas: Sequence[float]) -> Result:
        """The unsteered answer, and one at each strength, from one batch.

        Raises:
            ValueError: an empty prompt, no strength, a layer or policy that the artefact or the model does not have,
            an image that a method with a vector per sample does not know.
        """
        if not request.prompt.strip():
            raise ValueError("the prompt is empty; type a question or an instruction")
        if not alphas:
            raise ValueError("no strength to steer with; give at least one")
        with self._lock:
            return self._answer(steerer, request, (0.0, *map(float, alphas)))

    def _answer(self, steerer: Steerer, request: Request, alphas: tuple[float, ...]) -> Result:
        rows, started = len(alphas), time.perf_counter()
        generator = Generator(self.model, self.processor, template=self.template, decoding=request.decoding)
        session = steering(self.model, steerer, layers=request.layers, alpha=alphas, policy=request.policy, trace=True)
        ids = None if request.sample_id is None else [request.sample_id] * rows
        gates = recording(steerer) if isinstance(steerer, FlexACSteerer) else contextlib.nullcontext()
        with warnings.catch_warnings(), gates as seen, session, session.rows(sample_ids=ids):
            warnings.simplefilter("ignore", SteeringWarning)  # said in the notes
            # One name for all rows: sampled answers differ by the strength alone, not by their noise.
            replies = generator.replies([request.image] * rows, [request.prompt] * rows, names=["row"] * rows)
        return Result(
            alphas=alphas,
            replies=tuple(replies),
            layers=_layers(session, seen.table() if seen is not None else {}, alphas),
            policy=str(session.policy),
            prompt_tokens=len(generator.prompt_ids(request.prompt, request.image)),
            context_passes=session.stats.context_passes,
            seconds=time.perf_counter() - started,
            notes=tuple(_notes(steerer, session, alphas)),
        )


def open_source(path: str, *, base: str | None = None, revision: str | None = None) -> ModelSource:
    """`find_model`, with the revision of a hub: name given by itself.

    Raises:
        ValueError: a revision of a folder. FileNotFoundError, OSError: no such model here.
    """
    if revision is None:
        return find_model(path, base=base)
    if not path.startswith(HUB):
        raise ValueError(f"--revision {revision}: --model {path} is not a hub:owner/name; a folder has no revisions")
    if parse_hub(path)[1] is not None:
        raise ValueError(f"--revision {revision}: --model {path} names a revision already; give one of them")
    return find_model(f"{path}@{revision}", base=base)


def sweep_strengths(most: float, steps: int = 4) -> list[float]:
    """From -most to most in 2 * steps + 1 equal steps, without the 0 that every batch has anyway."""
    return [most * step / steps for step in range(-steps, steps + 1) if step]


def parse_layers(names: Sequence[str]) -> tuple[LayerKey, ...]:
    """Layers as a user writes them: whole numbers are indices, everything else a name.

    Raises:
        ValueError: none is left.
    """
    cleaned = [str(name).strip() for name in names if str(name).strip()]
    if not cleaned:
        raise ValueError("no layer is chosen; pick at least one")
    return tuple(int(name) if name.lstrip("-").isdigit() else name for name in cleaned)


def _layers(session: Session, gates: dict[int, dict[str, Any]], alphas: tuple[float, ...]) -> tuple[SteeredLayer, ...]:
    first = next((row for row, alpha in enumerate(alphas) if alpha), 0)
    ratios = session.trace.ratios()
    found = []
    for index, layer in sorted(session.layers.items()):
        seen = gates.get(index, {})
        found.append(
            SteeredLayer(
                index,
                layer.name,
                session.stats.positions[index],
                tuple(session.trace.positions(index, first)),
                ratios.get(index),
                seen.get("gate", {}),
                seen.get("aligned", {}),
                seen.get("rotation"),
            )
        )
    return tuple(found)


def _notes(steerer: Steerer, session: Session, alphas: tuple[float, ...]) -> list[str]:
    notes = []
    if isinstance(steerer, FlexACSteerer) and max(alphas) > 0:
        notes.append(CREATIVE)
    if not any(alphas):
        notes.append("The dial is at 0: both answers are the model's own.")
    elif session.stats.total == 0:
        notes.append(f"No position was steered: the policy {session.policy} chose none. Try another one.")
    return notes
