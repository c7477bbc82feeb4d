"""Run the work of `annotate` on a Ray cluster, through Ray Data: results in the order of the input.

Optional: needs the package ray[data], and this package installed on every node. A window of the input is one Ray data
set at a time, so the driver's memory does not grow with the input; going on after a kill is `annotate`'s, as without.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from hacl.data.parallel import chunked
from hacl.hallucinate.annotate import AnnotationReport

WINDOW = 64  # chunks of a data set, per worker


def ray_map(
    setup: Callable[[], Any], work: Callable[[Any, Any], Any], items: Iterable[Any], *, workers: int
) -> Iterator[tuple[bytes, AnnotationReport]]:
    """As `hacl.data.parallel.ordered_map`, for `annotate` alone, with `workers` actors of the cluster.

    The cluster is that of RAY_ADDRESS, a new one on this machine where that is not set. Raises ValueError where Ray is
    not installed.
    """
    if find_spec("ray") is None:
        raise ValueError('--engine ray needs the package ray: pip install "ray[data]"; or use --engine local')
    import ray

    if not ray.is_initialized():
        ray.init() if os.environ.get("RAY_ADDRESS") else ray.init(include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    for window in chunked(items, WINDOW * workers):
        rows = [{"chunk": json.dumps(chunk)} for chunk in window]
        done = ray.data.from_items(rows).map_batches(
            _Actor,
            fn_constructor_args=(setup, work),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for row in done.iter_rows():
            report = json.loads(row["report"])
            yield (
                row["text"].encode(),
                AnnotationReport(
                    records=report["records"],
                    captions=report["captions"],
                    types=Counter(report["types"]),
                    fewer=Counter({int(number): count for number, count in report["fewer"].items()}),
                    rejected=Counter(report["rejected"]),
                    without=report["without"],
                ),
            )


class _Actor:
    """One worker of the cluster."""

    def __init__(self, setup: Callable[[], Any], work: Callable[[Any, Any], Any]):
        self.state, self.work = setup(), work

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        texts, reports = [], []
        for chunk in batch["chunk"]:
            text, report = self.work(self.state, json.loads(str(chunk)))
            texts.append(text.decode())
            counts = {name: dict(getattr(report, name)) for name in ("types", "fewer", "rejected")}
            sums = {name: getattr(report, name) for name in ("records", "captions", "without")}
            reports.append(json.dumps({**sums, **counts}))
        return {"text": texts, "report": reports}
