"""Three models' replies side by side: the recovery fraction of every measure, and the side effects.

Nothing is generated here; likelihoods of texts under the original model are the one thing that is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hacl.compare.agreement import agreement
from hacl.compare.behaviour_report import Effect
from hacl.compare.behaviour_tasks import Measured, Tasks
from hacl.compare.forced import Side, forced_log_likelihoods
from hacl.compare.recovery_fraction import Fraction, per_image, recovery_fraction
from hacl.compare.side_effects import changed, distinct, negative_log_likelihood, text_effects
from hacl.evaluation.statistics import Table, bootstrap_runs, paired_difference, table_ratio
from hacl.representations.samples import Sample

Replies = tuple[Measured, Mapping[str, Table]]  # what a model said, and the evidence of its likelihood under a


def text_likelihood(
    original: Side, samples: Sequence[Sample], texts: Sequence[str], *, batch_size: int, progress: str = ""
) -> dict[str, Table]:
    """Evidence by image: nats per token of a model's texts under the unsteered original; empty ones count nothing."""
    kept = [i for i, text in enumerate(texts) if text.strip()]
    if not kept:
        return {}
    chosen = [samples[i] for i in kept]
    found = forced_log_likelihoods(
        original, chosen, [texts[i] for i in kept], batch_size=batch_size,
        progress=progress and f"{progress} perplexity",
    )  # fmt: skip
    return {"nats_per_token": negative_log_likelihood([s.group for s in chosen], found.total, found.tokens)}


def compare_measured(
    tasks: Tasks, original: Replies, tuned: Replies, moved: Replies, **interval: Any
) -> tuple[dict[str, Fraction], dict[str, Effect]]:
    """({measure: F}, {side effect: values and difference from the original})."""
    (a, b, s), ids = (side[0] for side in (original, tuned, moved)), [sample.group for sample in tasks.captions]
    measures = {}
    if ids:
        before, after = agreement(ids, a.captions, b.captions), agreement(ids, s.captions, b.captions)
        for name, table in before.items():
            perfect = {image: [pair[1], pair[1]] for image, pair in table.items()}
            measures[f"agreement_{name}"] = recovery_fraction(table, perfect, after[name], **interval)
    for name in a.tables:
        if name in b.tables and name in s.tables:
            measures[name] = recovery_fraction(a.tables[name], b.tables[name], s.tables[name], **interval)
    return measures, _effects(tasks, original, tuned, moved, ids, interval)


def _effects(tasks: Tasks, original: Replies, tuned: Replies, moved: Replies, ids, interval) -> dict[str, Effect]:
    found = {}
    tables = [{**text_effects(ids, side.captions), **likelihood} for side, likelihood in (original, tuned, moved)]
    for name in tables[0] if ids else ():
        a, b, s = (side.get(name) for side in tables)
        if a and b and s:
            difference = paired_difference([s], [a], **interval)
            found[name] = Effect(table_ratio(a), table_ratio(b), table_ratio(s), difference)
    for size in (1, 2) if ids else ():
        values = [distinct(side.captions, size) for side, _ in (original, tuned, moved)]
        found[f"distinct_{size}_corpus"] = Effect(*values, None)
    outside = [sample.group for sample in tasks.outside]
    if outside:
        a, b, s = (side[0].outside for side in (original, tuned, moved))
        shares = [per_image(outside, changed(a, texts)) for texts in (a, b, s)]
        values = [table_ratio(share) for share in shares]
        found["changed_outside"] = Effect(*values, bootstrap_runs([shares[2]], **interval))
    return found
