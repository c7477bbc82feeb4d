"""SugarCrepe accuracy per subset: the true caption must score strictly above the false one.

Hsieh et al., 2023, arXiv 2306.14610; main_eval.py of RAIVNLab/sugar-crepe@0047054b. There are seven subset accuracies
and no official mean of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hacl.evaluation.scorers.base import ImageSums, InputError, Scorer, Totals, listed
from hacl.evaluation.scorers.reading import require

# Subsets and their numbers of items.
SUBSETS = {
    "add_obj": 2062,
    "add_att": 692,
    "replace_obj": 1652,
    "replace_att": 788,
    "replace_rel": 1406,
    "swap_obj": 245,
    "swap_att": 666,
}


class SugarCrepeScorer(Scorer):
    """Predictions ``subset``, ``index``, ``pos_score``, ``neg_score``; no references.

    Ties are wrong, and so is a score that is not a number. A gap between the indices of a subset that has not its
    published number of items means missing predictions. Groups: one per subset with ``accuracy``; the same figures
    are the metrics ``<subset>_accuracy``.
    """

    benchmark = "sugarcrepe"
    needs_references = False

    def __init__(self, references: Any = None, **options: Any) -> None:
        super().__init__(None, **options)  # the predictions hold everything; references are not read
        self._right: dict[str, dict[int | str, bool]] = {}
        self._ties = self._not_numbers = 0
        self._sums = ImageSums([f"{name}_accuracy" for name in SUBSETS])

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Item: ``subset``, ``index``, ``image_id`` and ``right``."""
        subset = require(row, "subset", where)
        if subset not in SUBSETS:
            near = difflib.get_close_matches(subset, SUBSETS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(SUBSETS)}"
            raise InputError(f"{where}: subset {subset!r} is none of SugarCrepe's; {hint}")
        given = require(row, "index", where, (int, str))
        index = int(given) if isinstance(given, str) and given.strip().isdecimal() else given
        positive = require(row, "pos_score", where, (int, float))
        negative = require(row, "neg_score", where, (int, float))
        done = self._right.setdefault(subset, {})
        if index in done:
            raise InputError(f"{where}: {subset} index {index} is scored twice; keep one")
        right = done[index] = positive > negative
        self._ties += positive == negative
        self._not_numbers += positive != positive or negative != negative
        image = str(row.get("image_id", row.get("filename", f"{subset}/{index}")))
        self._sums.add(image, f"{subset}_accuracy", right, 1)
        return {"subset": subset, "index": index, "image_id": image, "right": right}

    def finish(self, *, allow_missing: bool = False) -> Totals:
        totals = Totals()
        gaps = self._gaps()
        if gaps:
            message = f"{len(gaps)} predictions are missing: {listed(gaps)}"
            if not allow_missing:
                raise InputError(f"{message}; score them, or allow missing ones to score the rest")
            totals.warnings.append(f"{message}; they are left out")
        for name, items in SUBSETS.items():
            right = self._right.get(name)
            if right is None:
                totals.warnings.append(f"subset {name} is not there")
                continue
            if len(right) != items:
                totals.warnings.append(f"subset {name} has {len(right)} predictions; the published set has {items}")
            totals.groups[name] = {"accuracy": sum(right.values()) / len(right)}
            totals.metrics[f"{name}_accuracy"] = totals.groups[name]["accuracy"]
            totals.counts[name] = len(right)
        totals.counts["ties"] = self._ties
        if self._ties:
            totals.warnings.append(f"{self._ties} ties count as wrong; half-precision scores tie often")
        if self._not_numbers:
            totals.warnings.append(f"{self._not_numbers} pairs have a score that is not a number and count as wrong")
        totals.sums = self._sums
        return totals

    def _gaps(self) -> list[str]:
        """Indices missing between the first and the last of a subset, or of the file if it numbers all rows through."""
        every = [index for done in self._right.values() for index in done]
        if not all(isinstance(index, int) for index in every):
            return []
        if len(set(every)) == len(every) and max(every) - min(every) + 1 == len(every):
            return []
        return [
            f"{name} {index}"
            for name, done in self._right.items()
            if len(done) != SUBSETS[name]
            for index in range(min(min(done), 1), max(done))
            if index not in done
        ]
