"""Which metrics a validation logs for an objective, so that train.best_metric can be checked before training."""

from __future__ import annotations

from typing import Any


def validation_metrics(objective: Any) -> set[str]:
    """Names that a validation may log for an objective, without the prefix `eval_`."""
    names = {"loss"}
    if objective.lm_weight or objective.likelihood_margin_weight:
        names.add("lm")
    if objective.likelihood_margin_weight:
        names |= {"likelihood_margin", "likelihood_win_rate"}
    if objective.contrastive_weight:
        names |= {"contrastive", "i2t", "t2i", "i2t_top1", "t2i_top1", "positive_similarity", "negative_similarity"}
        names |= {"effective_negatives", "temperature"}
        if objective.num_hallucinated:
            names |= {"hard_similarity", "hard_negative_win_rate", "win_rate/<type>"}
        names |= {name for name in ("t2i_hard", "text_margin") if getattr(objective, f"{name}_weight")}
    return names


def unknown_metric(config: Any) -> bool:
    """Whether train.best_metric cannot occur; which types have a win rate depends on the records."""
    if config.train.best_metric is None:
        return False
    name = config.train.best_metric.removeprefix("eval_")
    return ("win_rate/<type>" if name.startswith("win_rate/") else name) not in validation_metrics(config.objective)
