"""Which records of a streamed source form each batch of each rank and worker: a pure function of seed, epoch and place.

The order of an epoch is the source's, shuffled within consecutive blocks of `block` rows. Global batch g holds the
places [g G, (g + 1) G) of that order, G = batch_size * ranks, of which rank r gets every ranks-th from r on; an
incomplete last batch is dropped unless it is the only one. Worker w of W makes the batches w, w + W, ... from the place
where the run goes on, which is the order in which a DataLoader asks its workers. So the batches of a rank do not depend
on the number of workers, and going on after any batch repeats and misses nothing. Memory: one block of undecoded rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from hacl.data.parallel import chunked
from hacl.data.records import Record
from hacl.data.sources import Source

BLOCK = 8192


class RecordStream:
    """The batches of one rank.

    source: see `open_source`; batch_size: records per rank and batch; seed: of the shuffle, None keeps the source's
    order. `state_dict` says where the stream stands, in (epoch, batches handed out); `load_state_dict` goes on there.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        ranks: int = 1,
        block: int = BLOCK,
    ):
        if not 0 <= rank < ranks or batch_size < 1 or block < 1:
            raise ValueError(f"rank {rank} of {ranks}, batch_size {batch_size}, block {block}: out of range")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.rank, self.ranks, self.block = rank, ranks, block
        self.epoch = 0
        self.start = 0

    def batches(self, worker: int = 0, workers: int = 1) -> Iterator[list[Record]]:
        """The batches of this epoch from `start` on that one worker makes."""
        for turn, batch in enumerate(self.undecoded()):
            if turn % workers == worker:
                yield self.decode(batch)

    def undecoded(self) -> Iterator[list[tuple[str, Any]]]:
        """The rows of this rank in each batch of this epoch from `start` on, as `decode` takes them."""
        size = self.batch_size * self.ranks
        batch: list[tuple[str, Any]] = []
        number = self.start
        for place in self._order(number * size):
            batch.append(place)
            if len(batch) == size:
                yield batch[self.rank :: self.ranks]
                batch, number = [], number + 1
        if batch and number == 0:
            if len(batch) < self.ranks:
                raise ValueError(f"{len(batch)} records cannot be shared by {self.ranks} ranks")
            yield batch[self.rank :: self.ranks]

    def decode(self, batch: Sequence[tuple[str, Any]]) -> list[Record]:
        return [self.source.decode(where, row) for where, row in batch]

    def batches_per_epoch(self) -> int | None:
        """None where only reading to the end would tell. Raises ValueError for a source without rows."""
        count = self.source.count()
        return None if count is None else self.batches_of(count)

    def batches_of(self, count: int) -> int:
        """Batches of an epoch of `count` rows."""
        if not count:
            raise ValueError("the source holds no records")
        return max(1, count // (self.batch_size * self.ranks))

    def __iter__(self) -> Iterator[list[Record]]:
        """All batches from where the stream stands; `start` follows, and a finished epoch begins the next."""
        for batch in self.batches():
            self.start += 1
            yield batch
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Stand at the beginning of an epoch, unless the stream stands within it already."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "start": self.start, "made_from": self._made_from()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is of another source or of batches cut otherwise."""
        mine = self._made_from()
        changed = sorted(key for key in mine if state["made_from"].get(key) != mine[key])
        if changed:
            raise ValueError(f"the stream was left with another {', '.join(changed)}; its place means nothing here")
        self.epoch, self.start = state["epoch"], state["start"]

    def _made_from(self) -> dict[str, Any]:
        settings = {"batch_size": self.batch_size, "seed": self.seed, "ranks": self.ranks, "block": self.block}
        return {"source": self.source.fingerprint(), **settings}

    def _order(self, skip: int) -> Iterator[tuple[str, Any]]:
        """Undecoded rows of the epoch's order from place `skip` on."""
        first, within = divmod(skip, self.block)
        for number, rows in enumerate(chunked(self.source.rows(first * self.block), self.block), start=first):
            if self.seed is not None:
                random.Random(f"{self.seed}/{self.epoch}/{number}").shuffle(rows)
            yield from rows[within:]
            within = 0
