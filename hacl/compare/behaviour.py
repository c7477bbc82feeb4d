"""Training-free recovery of behaviour: how much of the tuned model comes back when the original is steered.

Method, layers, positions and strength are chosen on validation images by the share of KL(b || a) that they close, and
confirmed once on the other images, beside controls, with the behaviour itself: texts, hallucination, side effects.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn

from hacl.compare.behaviour_controls import control_steerers
from hacl.compare.behaviour_measures import compare_measured, text_likelihood
from hacl.compare.behaviour_report import BehaviourReport, CurvePoint, VariantResult
from hacl.compare.behaviour_tasks import Measured, Tasks, Variant, generate, measure
from hacl.compare.divergence import Setting, divergence
from hacl.compare.forced import Side, two_sides
from hacl.compare.recovery_fraction import DRAWS, fraction_difference, zero_table
from hacl.evaluation.statistics import table_ratio
from hacl.representations.samples import Sample
from hacl.steering import Steerer
from hacl.steering.layers import LayerKey

ALPHAS = (0.25, 0.5, 1.0, 1.5, 2.0)
REFERENCES = ("lowrank",)  # an upper reference is no shift
TEXTS = ("reference", "tuned", "original")
Layers = LayerKey | Sequence[LayerKey] | None


def behaviour_recovery(
    original: nn.Module,
    tuned: nn.Module | None,
    processor,
    samples: Sequence[Sample],
    steerers: Mapping[str, Steerer],
    *,
    alphas: Sequence[float] = ALPHAS,
    layers: Sequence[Layers] | Mapping[str, Sequence[Layers]] = (None,),
    policies: Sequence[str] = ("all",),
    permuted: Mapping[str, Steerer] | None = None,
    references: Collection[str] = REFERENCES,
    tasks: Tasks | None = None,
    measured: Collection[str] | None = None,
    text: str = "reference",
    select_on: float | Collection[str] = 0.5,
    fitted_on: Collection[str] = (),
    template: str = "plain",
    random_draws: int = 3,
    seed: int = 0,
    draws: int = DRAWS,
    batch_size: int = 16,
    progress: bool = True,
) -> BehaviourReport:
    """The whole comparison. See docs/training_free_recovery.md.

    Args:
        original, tuned: stock models with one tokenizer, or a PEFT wrapper and None (adapter off and on).
        samples: prompts whose texts both models are forced through.
        steerers: methods by name.
        layers: choices, each one layer, several, or None for all of a steerer's own; the same for all methods, or by
            method.
        permuted: for methods by name, the same fitted on permuted pairs (a control).
        references: methods that are confirmed but never chosen.
        tasks: what is generated, with images of the validation half left out.
        measured: which of the methods and controls are generated with, by name ("control/NAME") or by role ("chosen",
            "method", "reference", "control"); all by default.
        text: whose text is forced, "reference" (sample.answer), "tuned" or "original" (their own greedy replies).
        select_on: share of images, or their ids, on which settings are chosen.
        fitted_on: images that the vectors were estimated on, which may not be among the samples.
        random_draws: random controls.

    Raises:
        ValueError: no steerer or strength, an image on both sides of a split, or a sample without a text.
    """
    grid = make_grid(steerers, alphas, layers, policies)
    first, second = two_sides(original, tuned, processor, template)
    _check_fitted(samples, tasks, fitted_on)
    chosen_on, confirmed_on = split_samples(samples, select_on, seed)
    tasks = (tasks or Tasks()).without({sample.group for sample in chosen_on})
    common = {"batch_size": batch_size, "interval": {"draws": draws, "seed": seed}}
    bar = _labels(progress)
    texts = _texts(first, second, samples, text, tasks.max_new_tokens, batch_size, bar("texts"))

    found = divergence(
        first, second, chosen_on, [texts[s.id] for s in chosen_on], steerers, grid,
        batch_size=batch_size, progress=bar("choosing"),
    )  # fmt: skip
    curve = [CurvePoint(setting, found.closed(setting, **common["interval"])) for setting in grid]
    best = best_settings(curve, references)
    report = BehaviourReport(
        curve=curve,
        meta={
            "template": template, "text": text, "seed": seed, "draws": draws, "policies": list(policies),
            "alphas": [float(alpha) for alpha in alphas], "fitted_on": len(set(fitted_on)),
            "validation": _size(chosen_on), "test": _size(confirmed_on),
        },
    )  # fmt: skip
    if not best:
        report.warnings.append("the two models do not differ beyond noise on the validation texts: nothing to recover")
        return report
    variants = confirmed_variants(steerers, best, permuted or {}, references, random_draws, seed)
    _confirm(report, variants, first, second, confirmed_on, texts, bar, common)
    if tasks.captions or tasks.questions or tasks.margins or tasks.outside:
        _measure(report, variants, first, second, tasks, measured, bar, common)
    return report


def make_grid(
    steerers: Mapping[str, Steerer],
    alphas: Sequence[float],
    layers: Sequence[Layers] | Mapping[str, Sequence[Layers]],
    policies: Sequence[str],
) -> list[Setting]:
    """Every method at every strength (0 aside, which is the original), layers and positions."""
    choices = layers if isinstance(layers, Mapping) else dict.fromkeys(steerers, layers)
    if not steerers or not policies or not all(choices.get(name) for name in steerers):
        raise ValueError("nothing to choose from: give steerers, layers and policies")
    strengths = [float(alpha) for alpha in alphas if alpha]
    if not strengths:
        raise ValueError(f"alphas={list(alphas)}: give at least one strength other than 0")
    return [
        Setting(name, alpha, where, policy)
        for name in steerers for where in map(_layers, choices[name]) for policy in policies for alpha in strengths
    ]  # fmt: skip


def _layers(choice: Layers) -> tuple[LayerKey, ...] | None:
    return None if choice is None else tuple([choice] if isinstance(choice, int | str) else choice)


def split_samples(
    samples: Sequence[Sample], select_on: float | Collection[str], seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Validation and test samples; an image is on one side only.

    Raises:
        ValueError: a side is empty.
    """
    images = sorted({sample.group for sample in samples})
    if isinstance(select_on, float | int):
        random.Random(seed).shuffle(images)
        chosen = set(images[: round(select_on * len(images))])
    else:
        chosen = set(select_on)
    halves = [s for s in samples if s.group in chosen], [s for s in samples if s.group not in chosen]
    if not all(halves):
        raise ValueError(
            f"{len(images)} images give {len(halves[0])} validation and {len(halves[1])} test samples; both need some"
        )
    return halves


def best_settings(curve: Iterable[CurvePoint], references: Collection[str] = ()) -> list[Setting]:
    """For each method its setting that closes most, the best method first; empty where no gap is defined.

    References come after all others, however much they close.
    """
    best: dict[str, CurvePoint] = {}
    for point in curve:
        known = best.get(point.setting.method)
        if point.closed.defined and (known is None or point.closed.share.estimate > known.closed.share.estimate):
            best[point.setting.method] = point
    order = sorted(best.values(), key=lambda p: (p.setting.method in references, -p.closed.share.estimate))
    return [point.setting for point in order]


def confirmed_variants(
    steerers: Mapping[str, Steerer],
    best: Sequence[Setting],
    permuted: Mapping[str, Steerer],
    references: Collection[str],
    random_draws: int,
    seed: int,
) -> dict[str, tuple[str, Variant]]:
    """{name: (role, variant)}: every method at its setting, the "chosen" one first; then controls of the chosen."""
    chosen, steerer = best[0], steerers[best[0].method]
    roles = {s.method: "reference" if s.method in references else "method" for s in best} | {chosen.method: "chosen"}
    found = {s.method: (roles[s.method], Variant(s, steerers[s.method])) for s in best}
    controls = control_steerers(steerer, random_draws=random_draws, seed=seed)
    if chosen.method in permuted:
        controls["permuted_pairs"] = permuted[chosen.method]
    controls["negative_alpha"] = steerer
    for name, control in controls.items():
        alpha = -chosen.alpha if name == "negative_alpha" else chosen.alpha
        setting = Setting(f"control/{name}", alpha, chosen.layers, chosen.policy)
        found[setting.method] = ("control", Variant(setting, control))
    return found


def _confirm(report, variants, first, second, samples, texts, bar, common) -> None:
    """KL on the test images: every method and control, and each control against the chosen method."""
    found = divergence(
        first, second, samples, [texts[s.id] for s in samples],
        {name: variant.steerer for name, (_, variant) in variants.items()},
        [variant.setting for _, variant in variants.values()],
        batch_size=common["batch_size"], progress=bar("confirming"),
    )  # fmt: skip
    base = found.base_table()
    chosen = found.table(next(iter(variants.values()))[1].setting)
    for name, (role, variant) in variants.items():
        result = VariantResult(name, role, variant.setting, found.closed(variant.setting, **common["interval"]))
        if report.variants:
            other = found.table(variant.setting)
            result.behind = fraction_difference(base, zero_table(base), chosen, other, **common["interval"])
        report.variants.append(result)
    report.kl = table_ratio(base)


def _measure(report, variants, first: Side, second: Side, tasks: Tasks, measured, bar, common) -> None:
    """Behaviour of both models and of the variants asked for."""
    size = common["batch_size"]

    def ask(side: Side, name: str, variant: Variant | None = None) -> tuple[Measured, dict]:
        found = measure(side, tasks, variant, batch_size=size, progress=bar(name))
        return found, text_likelihood(first, tasks.captions, found.captions, batch_size=size, progress=bar(name))

    start, end = ask(first, "original"), ask(second, "tuned")
    report.replies = {"original": start[0], "tuned": end[0]}
    for result in report.variants:
        if measured is None or {result.name, result.role} & set(measured):
            moved = ask(first, result.name, variants[result.name][1])
            report.replies[result.name] = moved[0]
            result.measures, result.effects = compare_measured(tasks, start, end, moved, **common["interval"])


def _texts(first, second, samples, text: str, max_new_tokens: int, batch_size: int, label: str) -> dict[str, str]:
    if text not in TEXTS:
        raise ValueError(f"text={text!r}: forced texts are {', '.join(TEXTS)}")
    ids = [sample.id for sample in samples]
    if len(set(ids)) != len(ids):
        raise ValueError("samples have ids that occur twice; give each its own")
    if text == "reference":
        missing = [sample.id for sample in samples if not sample.answer]
        if missing:
            raise ValueError(f"sample {missing[0]!r} has no answer ({len(missing)} have none); use text='tuned'")
        return {sample.id: sample.answer for sample in samples}
    side = second if text == "tuned" else first
    found = generate(side, samples, max_new_tokens, batch_size=batch_size, progress=label)
    return dict(zip(ids, found, strict=True))


def _check_fitted(samples: Sequence[Sample], tasks: Tasks | None, fitted_on: Collection[str]) -> None:
    tasks = tasks or Tasks()
    asked = {sample.group for sample in [*samples, *tasks.captions]} | {record.image_id for record in tasks.margins}
    asked |= {question.image_id for questions in tasks.questions.values() for question in questions}
    shared = sorted(asked & set(fitted_on))
    if shared:
        raise ValueError(
            f"image {shared[0]!r} ({len(shared)} in all) was used to estimate the vectors; measure on other images"
        )


def _size(samples: Sequence[Sample]) -> dict[str, int]:
    return {"samples": len(samples), "images": len({sample.group for sample in samples})}


def _labels(progress: bool):
    return (lambda name: name) if progress else (lambda name: "")
