"""`steer.py extract`: contrastive states of a file of rows, or of records with hallucinated captions."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from hacl.data.records import read_records
from hacl.steering.extraction import ExtractionStats, extract
from hacl.steering.extraction_rows import Behaviours, ContrastRow, read_rows, rows_from_records
from hacl.steering.steerer import ContextSpec


def run(options: Namespace, open_model: Callable[[Namespace], tuple[Any, Any, str]]) -> int:
    """open_model: (model, processor, template) for the options."""
    behaviours = Behaviours.load(options.behaviours) if options.behaviours else None
    rows = rows_of(options, behaviours)
    model, processor, template = open_model(options)
    context = None
    if options.context_layer is not None:
        context = ContextSpec(layer_key(options.context_layer), options.context_token)
    stats = ExtractionStats()
    extract(
        model, processor, rows, layers=layer_keys(options.layers), out=options.out, context=context,
        pooling=options.pooling, template=template, batch_size=options.batch_size, continuation=options.continuation,
        share=not options.whole, behaviours=behaviours, stats=stats,
    )  # fmt: skip
    saved = 1 - stats.tokens / stats.tokens_whole if stats.tokens_whole else 0.0
    print(
        f"{len(rows)} rows, {stats.rows} read now, {stats.shared} of them with a shared prefix; {stats.tokens:,} "
        f"decoder tokens in place of {stats.tokens_whole:,} ({saved:.0%} saved)"
    )
    print(f"written: {options.out}")
    return 0


def rows_of(options: Namespace, behaviours: Behaviours | None) -> list[ContrastRow]:
    """The rows that the options name. Raises ValueError where they name none, or two kinds."""
    if bool(options.rows) == bool(options.records) or (options.rows and behaviours is None):
        raise ValueError("give --rows with --behaviours, or --records (captions against their hallucinated ones)")
    if options.rows:
        found = read_rows(options.rows, behaviours, options.images)
    else:
        if options.images is None:
            raise ValueError("--records needs --images, the folder its image paths start from")
        found = rows_from_records(read_records(options.records), options.images, prompt=options.prompt)
    return found if options.limit is None else found[: options.limit]


def layer_key(text: str) -> int | str:
    """A layer as a session names it: a number where it is one."""
    return int(text) if text.lstrip("-").isdigit() else text


def layer_keys(text: str) -> list[int | str]:
    """From "14", "-2,-1" or "10-14"."""
    found: list[int | str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        found += range(int(span[1]), int(span[2]) + 1) if span else [layer_key(part)]
    return found
