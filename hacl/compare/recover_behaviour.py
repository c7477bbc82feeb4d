"""Fit the interventions of a behaviour recovery on some images' states, and run it on the others.

The stage of `scripts/compare.py` around `behaviour_recovery`: states under teacher forcing, methods and their permuted
controls, sequential shifts of several layers, artefacts, replies of the models as rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hacl.compare.behaviour import ALPHAS, behaviour_recovery
from hacl.compare.behaviour_methods import Methods, make_methods, mean_shifts
from hacl.compare.behaviour_report import BehaviourReport
from hacl.compare.behaviour_tasks import Tasks, generate
from hacl.compare.final_bias import final_norm_bias
from hacl.compare.forced import two_sides
from hacl.compare.plain import Row, plain
from hacl.compare.sequential import forced_states, sequential_shifts
from hacl.models.adapters import find_adapter
from hacl.representations.dictionaries import Dictionary
from hacl.representations.parts import FINAL_NORM
from hacl.representations.samples import Sample
from hacl.steering import MeanSteerer, Provenance, Steerer, save_steerer
from hacl.steering.layers import LayerKey

SEQUENTIAL = "global_sequential"
SELECT_ON = 0.5  # of the images that nothing was fitted on, the share on which settings are chosen


@dataclass(frozen=True)
class BehaviourSettings:
    """layers: blocks (or "final_norm") to choose from, each alone; with several, also all blocks at once by shifts that
    were estimated one after the other. concepts: per layer, for the concept-wise methods. rank: of the low-rank map.
    alphas, policies, text, random_draws, draws, seed, batch_size: see `behaviour_recovery`. position: which states the
    methods are fitted on, see `forced_states`.
    """

    layers: tuple[LayerKey, ...]
    concepts: int = 8
    rank: int = 16
    alphas: tuple[float, ...] = ALPHAS
    policies: tuple[str, ...] = ("last-1", "all")
    text: str = "reference"
    position: str = "answer"
    random_draws: int = 3
    draws: int = 1000
    seed: int = 0
    batch_size: int = 16
    template: str = "plain"

    @property
    def blocks(self) -> tuple[LayerKey, ...]:
        return tuple(layer for layer in self.layers if layer != FINAL_NORM)


@dataclass(frozen=True)
class FittedMethods:
    """methods; sequential: of all blocks, None with fewer than two; facts: what a report says about the fit."""

    methods: Methods
    sequential: Steerer | None
    facts: dict[str, Any]


def fit_methods(
    original: nn.Module,
    tuned: nn.Module | None,
    processor,
    samples: Sequence[Sample],
    settings: BehaviourSettings,
    *,
    max_new_tokens: int = 64,
    progress: bool = True,
) -> FittedMethods:
    """Interventions fitted on the states that predict the samples' texts; arguments as in `behaviour_recovery`."""
    first, second = two_sides(original, tuned, processor, settings.template)
    size = settings.batch_size
    texts = [sample.answer or "" for sample in samples]
    if settings.text != "reference":
        writer = second if settings.text == "tuned" else first
        texts = generate(writer, samples, max_new_tokens, batch_size=size, progress="texts" if progress else "")

    def states(side, layers, steerer=None):
        label = "states" if progress else ""
        return forced_states(
            side, samples, texts, layers,
            positions=settings.position, steerer=steerer, batch_size=size, progress=label,
        )  # fmt: skip

    a, owner_N = states(first, settings.layers)
    b, _ = states(second, settings.layers)
    pairs = {layer: (a[layer], b[layer]) for layer in settings.layers}
    groups = [samples[index].group for index in owner_N]
    centres = {
        layer: Dictionary.fit(a[layer], settings.concepts, seed=settings.seed).concepts_KD for layer in settings.layers
    }
    methods = make_methods(
        pairs, centres, groups=groups, rank=settings.rank, seed=settings.seed,
        assign="last_prompt" if settings.position == "last_prompt" else "state",
    )  # fmt: skip
    sequential = None
    if len(settings.blocks) > 1:
        sequential, _ = sequential_shifts(
            settings.blocks,
            lambda steerer, layer: states(first, [layer], steerer)[0][layer],
            lambda layer: b[layer],
            mean_shifts,
        )
    facts = {"states": len(owner_N), "samples": len(samples), "images": len(set(groups))}
    if FINAL_NORM in settings.layers:
        facts["final_norm_bias"] = _bias(original, processor, methods.steerers["global"])
    return FittedMethods(methods, sequential, facts)


def recover_behaviour(
    original: nn.Module,
    tuned: nn.Module | None,
    processor,
    fitted: FittedMethods,
    samples: Sequence[Sample],
    fitted_on: Sequence[str],
    settings: BehaviourSettings,
    *,
    tasks: Tasks | None = None,
    measured: Collection[str] | None = None,
    progress: bool = True,
) -> BehaviourReport:
    """Choose on half of the images and confirm on the other half; see `behaviour_recovery`."""
    steerers = _named(fitted)
    layers = dict.fromkeys(steerers, [(layer,) for layer in settings.layers]) | {SEQUENTIAL: [None]}
    report = behaviour_recovery(
        original, tuned, processor, samples, steerers,
        alphas=settings.alphas, policies=settings.policies, layers=layers, permuted=fitted.methods.permuted,
        tasks=tasks, text=settings.text, fitted_on=fitted_on, template=settings.template,
        random_draws=settings.random_draws, seed=settings.seed, draws=settings.draws,
        batch_size=settings.batch_size, progress=progress,
    )  # fmt: skip
    report.meta |= {"fit": fitted.facts, "settings": plain(asdict(settings))}
    return report


def save_methods(fitted: FittedMethods, folder: Path, model: Path | str, settings: BehaviourSettings) -> list[Path]:
    """Every method as an artefact that `scripts/evaluate.py --steering` and others load."""
    paths = []
    for name, steerer in _named(fitted).items():
        made = Provenance.of(
            model, token_rule=f"{settings.position} states under teacher forcing, {settings.text} text",
            config=plain(asdict(settings)), method=name,
        )  # fmt: skip
        paths.append(save_steerer(steerer, Path(folder) / name, made))
    return paths


def reply_rows(report: BehaviourReport, tasks: Tasks, count: int) -> list[Row]:
    """The first `count` captions of every model that was asked, one row per sample, for reading."""
    rows = []
    for index, sample in enumerate(tasks.captions[:count]):
        said = {name: found.captions[index] for name, found in report.replies.items()}
        rows.append({"sample": sample.id, "image_id": sample.group, "image": str(sample.image or ""), **said})
    return rows


def _named(fitted: FittedMethods) -> dict[str, Steerer]:
    found = dict(fitted.methods.steerers)
    return found | ({SEQUENTIAL: fitted.sequential} if fitted.sequential else {})


def _bias(model: nn.Module, processor, steerer: MeanSteerer) -> dict[str, list]:
    """What the global shift at the final norm does to the vocabulary, whatever the context."""
    head_VD = find_adapter(model).lm_head.weight.detach().float().cpu().numpy()
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = [tokenizer.decode([index]) for index in range(len(head_VD))]
    found = final_norm_bias(head_VD, np.asarray(steerer.values[FINAL_NORM]), tokens)
    return {"up": [list(pair) for pair in found.up], "down": [list(pair) for pair in found.down]}


def split_images(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit on and samples to measure on; an image is on one side only.

    Raises:
        ValueError: a share outside (0, 1), or too few images.
    """
    if not 0 < share < 1:
        raise ValueError(f"fit share {share}: between 0 and 1")
    images = sorted({sample.group for sample in samples})
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = {images[i] for i in order[: round(share * len(images))]}
    halves = [s for s in samples if s.group in chosen], [s for s in samples if s.group not in chosen]
    if len(chosen) < 2 or len(images) - len(chosen) < 4:
        raise ValueError(f"{len(images)} images: too few to fit, choose and confirm; give at least 10")
    return halves


def tasks_for(samples: Sequence[Sample], records: Mapping[str, Any], **options: Any) -> Tasks:
    """CHAIR truth, captions and margins of the records behind the samples. records: {image id: record}.

    options: vocabulary, questions, images, image_root, margin_prompt, outside, max_new_tokens of `Tasks`.
    """
    asked = list({sample.group: sample for sample in samples}.values())
    held = [records[sample.group] for sample in asked if sample.group in records]
    truth = {record.image_id: record.objects for record in held if record.objects is not None}
    margins = [record for record in held if record.hallucinated]
    complete = len(truth) == len(asked)
    return Tasks(captions=asked, truth=truth if complete else None, margins=margins, **options)
