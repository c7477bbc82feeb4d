"""`steer.py associate`: where extracted states differ, layer by layer, and what replacing them leaves."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from hacl.representations.encoding import RowEncoder
from hacl.steering.association.construct import split_half
from hacl.steering.association.features import features_from_extraction
from hacl.steering.association.layers import analyse_layers
from hacl.steering.association.pairs import PairRecord
from hacl.steering.association.replacement import ReplacementMap, replacement_map, runs_of
from hacl.steering.association.result import AssociationReport
from hacl.steering.commands.extract import rows_of
from hacl.steering.targets import SteeringData

DONORS = {"grounded state": "grounded", "control: grounded state of another image": "random"}


def run(options: Namespace, open_model: Callable[[Namespace], tuple[Any, Any, str]]) -> int:
    """Analyse, print the table, write JSON, CSV and the page. open_model: (model, processor, template)."""
    if bool(options.model) != bool(options.records):
        raise ValueError("--model and --records belong together: states are replaced in the captions of the records")
    pairs = _pairs(options) if options.records else []
    data = SteeringData(options.data)
    features = features_from_extraction(data)
    analysis = analyse_layers(features, window=options.window, draws=options.draws, seed=options.seed)
    stable = split_half(features, seed=options.seed, select_by="all")
    replaced = _replacements(options, pairs, data, open_model) if pairs else {}
    report = AssociationReport(analysis, replacements=replaced, stability=stable)
    report.write(options.out)
    for row in analysis.rows:
        auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
        print(
            f"layer {row['layer']!s:>10}  cosine {row['cosine']:.4f}  coherence {row['coherence']:.3f} (random labels "
            f"{row['coherence_null']:.3f})  AUC {auc}  split-half {stable[row['layer']]['mean']:.3f}"
        )
    suggested = analysis.suggested
    print(f"suggested: {', '.join(map(str, suggested)) if suggested else 'no layer; nothing stands out of the null'}")
    for name, found in replaced.items():
        print(f"replaced by {name}, {found.used} pairs; share of the later distance that goes with each layer:")
        print("  " + "  ".join(f"{row['layer']}: {_share(row['origin'])}" for row in found.origin))
    print(f"written: {options.out}/association.md, .json, association_layers.csv")
    return 0


def _pairs(options: Namespace) -> list[PairRecord]:
    """True (grounded) and hallucinated (associative) captions of the first records."""
    options.rows = None
    return [
        PairRecord(row.id, row.prompt, row.pos.answer, row.neg.answer, "records", str(row.image), row.group)
        for row in rows_of(options, None)
    ]


def _replacements(
    options: Namespace, pairs: list[PairRecord], data: SteeringData, open_model: Callable
) -> dict[str, ReplacementMap]:
    model, processor, template = open_model(options)
    data.check_model(model)
    parameter = next(model.parameters())
    encoder = RowEncoder(processor, template=template)
    runs = runs_of(pairs, encoder, "", device=parameter.device, dtype=parameter.dtype)
    groups = [pair.group for pair in pairs]
    found = {}
    for name, donor in DONORS.items():
        if donor == "random" and len(set(groups)) < 2:
            continue
        found[name] = replacement_map(
            model, runs, positions="last", donor=donor, groups=groups, draws=options.draws, seed=options.seed
        )
    return found


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
