"""Judges: language models behind an OpenAI-compatible endpoint that review answers. No torch.

A judge's prompt is this project's own, has a version, and its hash is part of every result: figures of two judges, or
of two versions of a prompt, are not comparable.
"""

from __future__ import annotations

import importlib

from hacl.evaluation.judges.base import Answer, Item, Judge
from hacl.evaluation.judges.run import JudgeReport, plan, run_judge

__all__ = ["JUDGES", "Answer", "Item", "Judge", "JudgeReport", "judge_class", "plan", "run_judge"]

# Where each benchmark's judge is; imported when it is asked for.
JUDGES = {
    "mmhal": "mmhal:MMHalJudge",
    "mm_safety": "mm_safety:SafetyJudge",
    "pairwise": "pairwise:PairwiseJudge",
    "rubric": "rubric:RubricJudge",
}


def judge_class(name: str) -> type[Judge]:
    """The judge of that name.

    Raises:
        ValueError: no such judge.
    """
    if name not in JUDGES:
        raise ValueError(f"no judge {name!r}; use one of {', '.join(JUDGES)}")
    module, kind = JUDGES[name].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)
