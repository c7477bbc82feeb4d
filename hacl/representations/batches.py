"""From samples to rows of features: one batch, in one forward, cut in two where memory runs out.

Shapes: M chosen states, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hacl.representations.encoding import EncodedRow, RowEncoder, prompt_hash
from hacl.representations.forward import Choice, Stats, read_states
from hacl.representations.free import write_and_watch
from hacl.representations.parts import Parts
from hacl.representations.samples import Sample
from hacl.representations.selectors import Pick, Selector
from hacl.representations.settings import Settings
from hacl.representations.words import DecodedTokens


@dataclass
class Captured:
    """Row tables of samples, in their order, and {layer: (M, D)} of all their rows, in the same order."""

    tables: list[list[dict[str, Any]]]
    features: dict[str, Tensor]


@dataclass
class BatchReader:
    """Reads batches of one model. limit: rows of a batch that are known to fit, 0 while none has failed."""

    model: nn.Module
    parts: Parts
    encoder: RowEncoder
    settings: Settings
    layers: list[str]
    dtype: torch.dtype
    stats: Stats = field(default_factory=Stats)
    limit: int = 0

    def __post_init__(self) -> None:
        self.selectors: list[Selector] = self.settings.selectors()
        self.with_answer = any(selector.reads_answer for selector in self.selectors)
        self.with_words = any(selector.pattern is not None for selector in self.selectors)
        self.special = frozenset(self.encoder.tokenizer.all_special_ids)

    def window(self, samples: Sequence[Sample]) -> Captured:
        """All rows of a window of samples, which are batched by length and given back in their own order.

        Raises:
            ValueError: a selector needs an answer that a sample has not, or one sample alone does not fit in memory.
        """
        order = sorted(range(len(samples)), key=lambda i: (len(samples[i].prompt) + len(samples[i].answer or ""), i))
        tables: list[list[dict[str, Any]]] = [[] for _ in samples]
        features: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        sources: list[int] = []
        size = self.settings.batch_size
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            found = self._fitting([samples[i] for i in chosen])
            for i, table in zip(chosen, found.tables, strict=True):
                tables[i] = table
                sources += [i] * len(table)
            for layer, values in found.features.items():
                features[layer].append(values)
        back = torch.tensor(sorted(range(len(sources)), key=lambda place: (sources[place], place)), dtype=torch.long)
        return Captured(tables, {layer: _stack(values, self)[back] for layer, values in features.items()})

    def _fitting(self, samples: Sequence[Sample]) -> Captured:
        """One batch, or as many parts of it as memory asks for."""
        if not self.limit or len(samples) <= self.limit:
            try:
                return self.batch(samples)
            except torch.OutOfMemoryError:
                if len(samples) == 1:
                    raise ValueError(
                        f"sample {samples[0].id!r} alone does not fit in memory; capture fewer layers"
                    ) from None
                self.limit, self.stats.halved = -(-len(samples) // 2), self.stats.halved + 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        size = self.limit  # a part may lower it further
        halves = [self._fitting(samples[i : i + size]) for i in range(0, len(samples), size)]
        features = {layer: torch.cat([half.features[layer] for half in halves]) for layer in self.layers}
        return Captured([table for half in halves for table in half.tables], features)

    def batch(self, samples: Sequence[Sample]) -> Captured:
        """The rows of one batch, from one forward (one generation in free mode)."""
        if self.settings.mode == "free":
            found = self._free(samples)
        else:
            found = self._teacher_forced(samples)
        self.stats.rows += sum(map(len, found.tables))
        self.stats.bytes_copied += sum(values.nbytes for values in found.features.values())
        return found

    def _teacher_forced(self, samples: Sequence[Sample]) -> Captured:
        rows = [self._read(sample) for sample in samples]
        picks = [self._picks(row, len(row.ids)) for row in rows]
        used = [number for number, kept in enumerate(picks) if kept]  # a row that keeps nothing is not computed
        features = {layer: torch.zeros(0, self.parts.hidden_size, dtype=self.dtype) for layer in self.layers}
        if used:
            device = next(self.model.parameters()).device
            inputs = self.encoder.batch([rows[number] for number in used], device, self.model.dtype)
            choice = _choice([rows[n] for n in used], [picks[n] for n in used], inputs["input_ids"].shape[1])
            features = read_states(self.model, self.parts, inputs, self.layers, choice, self.dtype)
            self.stats.forwards += 1
        return Captured(self._tables(samples, rows, picks), features)

    def _free(self, samples: Sequence[Sample]) -> Captured:
        prompts = [self.encoder.row(sample, None) for sample in samples]
        rows, states = write_and_watch(
            self.model, self.parts, self.encoder, prompts, self.layers, self.settings.max_new_tokens
        )
        picks = [self._picks(row, max(row.prompt, len(row.ids) - 1)) for row in rows]
        choice = _choice(rows, picks, max(row.prompt for row in rows), by_prompt=True)
        features = {}
        for layer in self.layers:
            h_RSD = states.pop(layer)
            self.stats.forwards = self.stats.forwards if features else self.stats.forwards + _forwards(h_RSD, rows)
            chosen_MD = choice.take(h_RSD) if len(choice) else h_RSD[:0, 0]
            features[layer] = chosen_MD.to(self.dtype).cpu()
        return Captured(self._tables(samples, rows, picks), features)

    def _read(self, sample: Sample) -> EncodedRow:
        needs = next((selector.spec for selector in self.selectors if selector.needs_answer), None)
        if sample.answer is None and needs:
            raise ValueError(
                f"sample {sample.id!r} has no answer, which selector {needs!r} needs; give one, or mode='free'"
            )
        return self.encoder.row(sample, sample.answer if self.with_answer else None)

    def _picks(self, row: EncodedRow, states: int) -> list[Pick]:
        layout = row.layout(states)
        answer = None
        if self.with_words:
            answer = DecodedTokens(self.encoder.decode, row.ids[row.prompt : row.end], self.special)
        return [
            pick for selector in self.selectors for pick in selector.picks(layout, answer, self.settings.occurrences)
        ]

    def _tables(
        self, samples: Sequence[Sample], rows: Sequence[EncodedRow], picks: Sequence[Sequence[Pick]]
    ) -> list[list[dict[str, Any]]]:
        return [
            _table(sample, row, kept, self.encoder) if kept else []
            for sample, row, kept in zip(samples, rows, picks, strict=True)
        ]


def _table(sample: Sample, row: EncodedRow, picks: Sequence[Pick], encoder: RowEncoder) -> list[dict[str, Any]]:
    common = {
        "sample": sample.id,
        "image_id": sample.group,
        "image": None if sample.image is None else str(sample.image),
    }
    text, prompt = encoder.decode(row.ids[row.prompt : row.end]).strip(), prompt_hash(row, sample)
    return [
        {
            **common,
            "selector": pick.selector,
            "key": pick.key,
            "position": pick.position,
            "token_id": pick.token_id,
            "token": "" if pick.token_id is None else encoder.tokenizer.decode([pick.token_id]),
            "word": pick.word,
            "text": text,
            "prompt_hash": prompt,
        }
        for pick in picks
    ]


def _choice(
    rows: Sequence[EncodedRow], picks: Sequence[Sequence[Pick]], width: int, *, by_prompt: bool = False
) -> Choice:
    """Columns of left-padded rows that are `width` wide, the whole of them or (by_prompt) their prompts."""
    where, columns = [], []
    for number, (row, kept) in enumerate(zip(rows, picks, strict=True)):
        pad = width - (row.prompt if by_prompt else len(row.ids))
        where += [number] * len(kept)
        columns += [tuple(pad + position for position in pick.positions) for pick in kept]
    return Choice(where, columns)


def _forwards(h_RSD: Tensor, rows: Sequence[EncodedRow]) -> int:
    """Forwards of a generation: one for the prompt, one for each later column."""
    return h_RSD.shape[1] - max(row.prompt for row in rows) + 1


def _stack(values: Sequence[Tensor], reader: BatchReader) -> Tensor:
    return torch.cat(values) if values else torch.zeros(0, reader.parts.hidden_size, dtype=reader.dtype)


def missing(tables: Sequence[Sequence[Mapping[str, Any]]], selectors: Sequence[Selector]) -> dict[str, int]:
    """{selector: samples that have no row for it}."""
    return {s.spec: sum(all(row["selector"] != s.spec for row in table) for table in tables) for s in selectors}
