"""Join two stores row by row: the same sample, the same position key. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hacl.representations.reader import FeatureStore, Row

SAME = ("selectors", "mode", "occurrences", "tokenizer_hash", "template_hash", "hidden_size", "num_layers")


@dataclass(frozen=True)
class Pairs:
    """index_a, index_b: int64 (M,), rows of one pair at the same place; rows: those of `a`; dropped_a, dropped_b: rows
    of each store without a partner.
    """

    index_a: np.ndarray
    index_b: np.ndarray
    rows: list[Row]
    dropped_a: int
    dropped_b: int

    def __len__(self) -> int:
        return len(self.rows)


def paired(a: FeatureStore, b: FeatureStore, *, force: bool = False) -> Pairs:
    """Inner join by (sample, key), in the order of `a`.

    force: join stores that differ in what is listed in `SAME`, and rows whose prompts or texts differ.

    Raises:
        ValueError: selectors, mode, tokenizer, template or shape differ; a sample's prompt differs; or, teacher-forced,
            the two models read different texts. The message names what differs.
    """
    unlike = [
        f"{key}: {a.manifest[key]!r} and {b.manifest[key]!r}" for key in SAME if a.manifest[key] != b.manifest[key]
    ]
    if unlike and not force:
        raise ValueError(
            f"{a.folder} and {b.folder} cannot be joined: {'; '.join(unlike)}. Capture both in the same way, "
            "or pass force=True"
        )
    places = {(row.sample, row.key): row for row in b.rows}
    found = [(row, other) for row in a.rows if (other := places.get((row.sample, row.key))) is not None]
    if not force:
        forced = a.manifest["mode"] == "teacher_forced"
        for row, other in found:
            _check(row, other, forced, f"{a.folder} and {b.folder}")
    rows = [row for row, _ in found]
    index = np.array([(row.row, other.row) for row, other in found], dtype=np.int64).reshape(-1, 2)
    return Pairs(index[:, 0].copy(), index[:, 1].copy(), rows, len(a) - len(found), len(b) - len(found))


def _check(row: Row, other: Row, teacher_forced: bool, where: str) -> None:
    if row.prompt_hash != other.prompt_hash:
        raise ValueError(
            f"{where}: sample {row.sample!r} has another prompt or image in each; capture both from the same samples"
        )
    if teacher_forced and (row.text, row.position, row.token_id) != (other.text, other.position, other.token_id):
        raise ValueError(
            f"{where}: the models read different texts for sample {row.sample!r}, key {row.key!r} "
            f"({row.text!r} and {other.text!r}); give both captures the same answers"
        )
