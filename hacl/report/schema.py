"""The `results` dictionary that the report reads: what an experiment script has to write, and the check of it.

Only ``header``, ``control``, ``measures`` and ``arms`` are required. Everything is plain JSON::

    {
      "title": "HACL on the pocket world",
      "header": "demonstration: one base, three seeds",        # the honest line under the title
      "summary": ["Sentence about the set-up.", ...],
      "control": "control",                                    # name of the arm that every other is compared with
      "splits": [{"name": "seen", "label": "Scenes like training", "description": "..."}, ...],
      "measures": [                                            # order of rows and columns
        {"key": "chair_i", "label": "CHAIR_i", "better": "lower",   # "lower", "higher" or null (no good direction)
         "group": "Captions",                                  # heading in the page, default "Measures"
         "format": ".3f",                                      # Python format of the value
         "headline": true,                                     # named in the opening verdicts
         "description": "hallucinated mentions / mentions",
         "bounds": [0, 1],                                     # optional: clips the interval of a measure without items
         "splits": ["seen"]}                                   # default: every split that has it
      ],
      "arms": [
        {"name": "control", "label": "Control", "description": "generation loss only",
         "reference": false,                                   # true: a yardstick (blind, ridge); no runs are paired
         "runs": [
           {"base": 0, "seed": 1,                              # pairs runs across arms
            "metrics": {"seen": {"chair_i": 0.31, ...}},       # split -> measure -> number or null
            "items": {"seen": {"chair_i": {"image-7": [1, 4], ...}}},   # optional evidence for intervals over images:
                                                               # numerator and denominator of each image, as
                                                               # hacl.evaluation.reports.ScoreReport.by_image() returns
            "log_path": "runs/control-1/log.jsonl",            # JSONL rows with "step" and numbers, relative to the
                                                               # folder of the report or absolute; or, inline:
            "log": [{"step": 1, "loss": 2.3}, ...],
            "seconds": 41.0}
         ]}
      ],
      "curves": [{"key": "loss", "label": "training loss"}, ...],       # which log keys to draw; default loss, lm,
                                                               # contrastive
      "states2d": [                                            # drawn with shared axes, in this order
        {"title": "before (base 0)", "explained": [0.31, 0.12],
         "points": {"image": [[x, y], ...], "true": [...], "hallucinated": [...]}}
      ],
      "examples": [
        {"image": "scenes/7.png",                              # a path (embedded, shrunk) or a data: address
         "alt": "drawn scene", "title": "scene 7", "truth": "a red cup left of a blue plate", "objects": ["cup"],
         "captions": [{"arm": "control", "text": "a cup and a fork", "marks": [[12, 16]]}]}   # character offsets
      ],
      "notes": ["..."], "negative_results": ["..."],
      "provenance": {"command": "...", "versions": {...}}      # printed as given
    }
"""

from __future__ import annotations

from typing import Any

REQUIRED = ("header", "control", "measures", "arms")


def check_results(results: dict[str, Any]) -> None:
    """Refuse a dictionary that the page cannot show honestly, naming the key at fault.

    Raises:
        ValueError: a required key is missing, the control is not an arm, a run is a duplicate or has no seed, a measure
            has an unknown direction, or a mark lies outside its caption.
    """
    for key in REQUIRED:
        if key not in results:
            raise ValueError(f"results: no {key!r}; required keys are {', '.join(REQUIRED)}")
    names = [arm["name"] for arm in results["arms"]]
    if len(set(names)) != len(names):
        raise ValueError(f"results['arms']: names repeat: {', '.join(names)}")
    if results["control"] not in names:
        raise ValueError(f"results['control']={results['control']!r} is not an arm; arms are {', '.join(names)}")
    for measure in results["measures"]:
        if measure.get("better") not in ("lower", "higher", None):
            raise ValueError(
                f"results['measures'] {measure.get('key')!r}: better={measure['better']!r}; use lower, higher or null"
            )
    for arm in results["arms"]:
        _check_runs(arm)
    for number, example in enumerate(results.get("examples", [])):
        for caption in example["captions"]:
            for start, end in caption.get("marks", []):
                if not 0 <= start < end <= len(caption["text"]):
                    raise ValueError(
                        f"results['examples'][{number}]: mark [{start}, {end}] lies outside {caption['text']!r}"
                    )


def _check_runs(arm: dict[str, Any]) -> None:
    seen = set()
    for run in arm["runs"]:
        if "seed" not in run or "metrics" not in run:
            raise ValueError(f"results arm {arm['name']!r}: every run needs 'seed' and 'metrics'")
        key = (str(run.get("base", 0)), run["seed"])
        if key in seen:
            raise ValueError(f"results arm {arm['name']!r}: base {key[0]}, seed {key[1]} appears twice")
        seen.add(key)
