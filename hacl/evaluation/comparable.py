"""Whether two score reports were made by the same ruler: scorer, version, options, split, references.

A saved report is JSON content as `ScoreReport.to_json` gives it. Numbers of one column, and the two sides of a
difference, must agree in all of this; a difference between two dialects of CHAIR says nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]

# Options that name a file of this run's own answers or a place on this machine, or fill in a null: no way of scoring.
NOT_A_RULER = {"nouns", "tags", "nltk_data", "judge_cache", "allow_missing", "zero_division"}


def scored_by(report: Report) -> dict[str, Any]:
    """What two reports must share to stand side by side: scorer, version, options, split, hashes of references."""
    meta = report.get("meta") or {}
    options = {name: value for name, value in (meta.get("options") or {}).items() if name not in NOT_A_RULER}
    found = {"scorer": meta.get("scorer"), "version": meta.get("version")}
    found |= {f"option {name}": value for name, value in sorted(options.items())}
    found |= {name: meta[name] for name in ("split", "judge") if name in meta}
    references = reference_hashes(meta)
    return found | ({"references": references} if references else {})


def reference_hashes(meta: Mapping[str, Any]) -> list[str]:
    """Sorted SHA-256 of the inputs that are not this run's own answers.

    The answers are the input that ``meta["predictions"]`` names, by default the last one, and files that a run brings
    along (nouns, tags).
    """
    inputs = meta.get("inputs") or {}
    own = {str(meta.get("predictions") or next(reversed(inputs), ""))}
    own |= {str(value) for name, value in (meta.get("options") or {}).items() if name in NOT_A_RULER and value}
    return sorted(str(digest) for path, digest in inputs.items() if path not in own)


def differences(a: Report, b: Report) -> list[str]:
    """What keeps two reports apart, as "key: one against other"; empty if they may be compared."""
    one, other = scored_by(a), scored_by(b)
    return [
        f"{key}: {shortened(one.get(key))} against {shortened(other.get(key))}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def check_comparable(a: Report, b: Report, names: tuple[str, str] = ("A", "B")) -> None:
    """Refuse reports that were not scored in the same way, naming what differs.

    Raises:
        ValueError: scorer, version, an option, the split or the references differ.
    """
    found = differences(a, b)
    if found:
        raise ValueError(f"{names[0]} and {names[1]} cannot be compared: {'; '.join(found)}. Score both in one way")


def shortened(value: Any) -> str:
    """A value for a message; hashes by their first 12 digits."""
    if isinstance(value, list):
        return ", ".join(str(part)[:12] for part in value) or "none"
    return "none" if value is None else str(value)
