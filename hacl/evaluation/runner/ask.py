"""Put requests to a model in batches, over ranks, with every reply on disk before the next batch begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from hacl.data.images import load_image
from hacl.evaluation.runner.plan import Request
from hacl.evaluation.runner.ranks import Ranks
from hacl.evaluation.runner.store import AnswerStore

Row = dict[str, Any]


class Answerer(Protocol):
    """What replies: a model with its decoding, a model under steering, or a stand-in."""

    def size(self, request: Request) -> int:
        """Length of a request in tokens; neighbours in length share a batch."""

    def answer(self, requests: Sequence[Request], images: Sequence[Image.Image | None]) -> list[Row]:
        """One row of results per request, in order; the key is added by the caller."""


def ask_all(
    requests: Sequence[Request],
    answerer_of,
    store: AnswerStore,
    *,
    batch_size: int,
    ranks: Ranks | None = None,
    label: str = "",
) -> dict[str, Row]:
    """Replies to distinct requests, by key; what the store already holds is not asked again.

    answerer_of: called once, when there is something to ask, for the `Answerer`; so a finished run loads no model.
    ranks: each takes an equal share, writes its own file, and the first merges them. label: of the progress bar.

    Raises:
        ValueError: a batch size below 1, an image that cannot be read (names question and file), or a mixed store.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: it must be at least 1")
    ranks = ranks or Ranks()
    store.open(write=ranks.first)
    ranks.wait()
    done = store.read()
    ranks.wait()  # nobody writes before everybody has read, or ranks would share the rest differently
    missing = [request for request in requests if request.key not in done]
    if missing:
        _ask_share(missing[ranks.rank :: ranks.world], answerer_of(), store, batch_size, ranks, label)
    ranks.wait()
    if ranks.first:
        store.merge(request.key for request in requests)
    ranks.wait()
    return store.read()


def _ask_share(share: list[Request], answerer: Answerer, store, batch_size: int, ranks: Ranks, label: str) -> None:
    batches = list(batches_of(share, answerer, batch_size))
    bar = tqdm(total=len(share), desc=label, unit="reply", disable=not (label and ranks.first), smoothing=0.1)
    with bar, store.shard(ranks.rank) as shard, ThreadPoolExecutor(max_workers=1) as ahead:
        waiting = ahead.submit(open_images, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            images = waiting.result()
            if number + 1 < len(batches):
                waiting = ahead.submit(open_images, batches[number + 1])
            rows = answerer.answer(batch, images)
            shard.append({**_asked(request), **row} for request, row in zip(batch, rows, strict=True))
            bar.update(len(batch))


def _asked(request: Request) -> Row:
    """What a line of the file says about its request."""
    row = {"key": request.key, "image": request.image and request.image.name, "prompt": request.prompt}
    return row if request.text is None else row | {"text": request.text}


def batches_of(requests: Sequence[Request], answerer: Answerer, batch_size: int) -> Iterator[list[Request]]:
    """Batches of one reply length, neighbours in prompt length together, so that little is padding."""
    ordered = sorted(requests, key=lambda r: (r.max_new_tokens or 0, answerer.size(r), str(r.image), r.key))
    batch: list[Request] = []
    for request in ordered:
        if batch and (len(batch) == batch_size or request.max_new_tokens != batch[0].max_new_tokens):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def open_images(batch: Sequence[Request]) -> list[Image.Image | None]:
    """The images of a batch, each file once. Raises ValueError naming question and file where one cannot be read."""
    opened: dict[Any, Image.Image | None] = {None: None}
    for request in batch:
        if request.image not in opened:
            try:
                opened[request.image] = load_image(request.image)
            except (ValueError, OSError) as error:
                raise ValueError(f"{request.where}: its image cannot be read: {error}") from error
    return [opened[request.image] for request in batch]
