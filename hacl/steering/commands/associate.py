"""`steer.py associate`: where extracted states differ, layer by layer, against nulls."""

from __future__ import annotations

from argparse import Namespace

from hacl.steering.association.construct import split_half
from hacl.steering.association.features import features_from_extraction
from hacl.steering.association.layers import analyse_layers
from hacl.steering.association.result import AssociationReport
from hacl.steering.targets import SteeringData


def run(options: Namespace) -> int:
    """Analyse, print the table, write JSON, CSV and the page."""
    features = features_from_extraction(SteeringData(options.data))
    analysis = analyse_layers(features, window=options.window, draws=options.draws, seed=options.seed)
    stable = split_half(features, seed=options.seed, select_by="all")
    report = AssociationReport(analysis, stability=stable)
    report.write(options.out)
    for row in analysis.rows:
        auc = "-" if row["auc"] is None else f"{row['auc']:.3f}"
        print(
            f"layer {row['layer']!s:>10}  cosine {row['cosine']:.4f}  coherence {row['coherence']:.3f} (random labels "
            f"{row['coherence_null']:.3f})  AUC {auc}  split-half {stable[row['layer']]['mean']:.3f}"
        )
    suggested = analysis.suggested
    print(f"suggested: {', '.join(map(str, suggested)) if suggested else 'no layer; nothing stands out of the null'}")
    print(f"written: {options.out}/association.md, .json, association_layers.csv")
    return 0
