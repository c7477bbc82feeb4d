"""States of one prompt and its two continuations, with the part they share computed once.

Image and question are the same in all three sequences. Where that holds to the token, they are read once, the KV cache
is copied, and three short branches follow; a row where it does not hold (or whose model makes its own positions) is
read as whole sequences.

Shapes: R rows, P columns of the shared part, T columns of the branches, D hidden size; three branches a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hacl.representations.encoding import EncodedRow, RowEncoder
from hacl.representations.forward import Choice, read_states, watching
from hacl.representations.parts import Parts
from hacl.representations.samples import Sample
from hacl.steering.extraction_rows import ContrastRow

POOLINGS = ("last_answer", "last_template", "mean_answer", "mean_continuation")
BRANCHES = ("context", "pos", "neg")


class _Enough(Exception):
    """The deepest layer that is wanted has been read."""


@dataclass
class Branched:
    """A row as three sequences: the prompt alone, and with either continuation.

    wanted: positions to average in each; shared: tokens at the beginning that all three have, 0 to read them whole;
    keep: a row without continuations: all three are the prompt alone, read at its last token.
    """

    sequences: list[EncodedRow]
    wanted: list[tuple[int, ...]]
    shared: int = 0
    keep: bool = False


def encode(encoder: RowEncoder, row: ContrastRow, pooling: str, token: str, *, share: bool = True) -> Branched:
    """The three sequences of a row. token: of the context, as in ContextSpec; share: whether a prefix may be shared.

    Raises:
        ValueError: an answer without a token, or a prompt without the tokens that the context is read from.
    """
    sides = (row.pos, row.neg)
    context = encoder.row(Sample(row.id, row.image, row.prompt), None)
    if row.keep:
        last = (len(context.ids) - 1,)
        found = Branched([context] * len(BRANCHES), [_context(context, token, row.id), last, last], keep=True)
        found.shared = shared_prefix(found.sequences) if share else 0
        return found
    # Where the processor expands images itself, ids and pixels belong together; else features may read the prompt.
    alone = encoder.sequences is None or encoder.sequences.images.format.reads_prompt
    made = [
        encoder.row(Sample(row.id, row.image, row.prompt + side.suffix), side.answer, pixels=alone) for side in sides
    ]
    for side, one in zip(sides, made, strict=True):
        one.inputs = one.inputs or context.inputs
        if one.end == one.prompt:
            raise ValueError(f"row {row.id!r}: the answer {side.answer!r} has no token")
        if pooling != "last_template":
            one.ids = one.ids[: one.end]
    found = Branched([context, *made], [_context(context, token, row.id), *(_answer(one, pooling) for one in made)])
    found.shared = shared_prefix(found.sequences) if share else 0
    return found


def extend(branched: Branched, side: int, continuation: Sequence[int]) -> None:
    """Append what the model wrote after an answer (pooling mean_continuation). side: 1 for pos, 2 for neg."""
    one = branched.sequences[side]
    one.ids = [*one.ids, *continuation]
    branched.wanted[side] = tuple(range(one.prompt, len(one.ids)))


def shared_prefix(sequences: Sequence[EncodedRow]) -> int:
    """How many first tokens all sequences have; 0 if their images are not among them, positions are not 0, 1, 2..., or
    what a token sees depends on its type, or features of the image read different prompts."""
    if any(any(map(any, one.per_token.values())) or "image_grid_thw" in one.inputs for one in sequences):
        return 0
    read = [one.inputs.get("qformer_input_ids") for one in sequences]
    if any(ids is not None and not torch.equal(ids, read[0]) for ids in read):
        return 0
    count = 0
    for tokens in zip(*(one.ids for one in sequences), strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count if all(position < count for one in sequences for position in one.image) else 0


def read_batch(
    model: nn.Module, parts: Parts, encoder: RowEncoder, rows: Sequence[Branched], layers: dict[str, list[str]]
) -> dict[str, Tensor]:
    """{"context.LAYER", "pos.LAYER", "neg.LAYER": fp32 (R, D) on the host}.

    layers: {branch: names of the layers to read}.
    """
    shared = [n for n, row in enumerate(rows) if row.shared]
    whole = [n for n, row in enumerate(rows) if not row.shared]
    found: dict[str, Tensor] = {}
    for index, read in ((shared, _read_shared), (whole, _read_whole)):
        if not index:
            continue
        part = read(model, parts, encoder, [rows[n] for n in index], sorted_layers(parts, layers))
        for number, branch in enumerate(BRANCHES):
            for layer in layers[branch]:
                values = part[layer][number::3].float().cpu()
                target = found.setdefault(f"{branch}.{layer}", torch.zeros(len(rows), values.shape[1]))
                target[torch.tensor(index)] = values
    return found


def sorted_layers(parts: Parts, layers: dict[str, list[str]]) -> list[str]:
    """Every layer that some branch reads, once, in the order of a forward."""
    return sorted({layer for names in layers.values() for layer in names}, key=parts.order().index)


def _read_whole(model, parts, encoder, rows: Sequence[Branched], layers: list[str]) -> dict[str, Tensor]:
    """{layer: (3R, D)}: every sequence from its first token."""
    sequences = [one for row in rows for one in row.sequences]
    device = next(model.parameters()).device
    inputs = encoder.batch(sequences, device, model.dtype)
    width = inputs["input_ids"].shape[1]
    pads = [width - len(one.ids) for one in sequences]
    wanted = [positions for row in rows for positions in row.wanted]
    columns = [tuple(pad + p for p in positions) for pad, positions in zip(pads, wanted, strict=True)]
    return read_states(model, parts, inputs, layers, Choice(range(len(sequences)), columns), torch.float32)


def _read_shared(model, parts, encoder, rows: Sequence[Branched], layers: list[str]) -> dict[str, Tensor]:
    """{layer: (3R, D)}: what the sequences share once, then three branches from its cache."""
    device = next(model.parameters()).device
    heads = [dataclasses.replace(row.sequences[0], ids=row.sequences[0].ids[: row.shared]) for row in rows]
    inputs = encoder.batch(heads, device, model.dtype)
    cache = DynamicCache()
    before = _states(parts, layers, lambda: model(**inputs, past_key_values=cache, use_cache=True))
    tails = [one.ids[row.shared :] for row in rows for one in row.sequences]
    longest = max(map(len, tails))
    after: dict[str, Tensor] = {}
    if longest:
        cache.batch_repeat_interleave(len(BRANCHES))
        ids = torch.tensor([tail + [encoder.pad] * (longest - len(tail)) for tail in tails], device=device)
        there = torch.tensor([[1] * len(tail) + [0] * (longest - len(tail)) for tail in tails], device=device)
        mask = torch.cat([inputs["attention_mask"].repeat_interleave(len(BRANCHES), 0), there], 1)
        start = torch.tensor([row.shared for row in rows for _ in BRANCHES], device=device)
        positions = start[:, None] + torch.arange(longest, device=device)
        after = _states(
            parts, layers, lambda: parts.decoder(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ),
        )  # fmt: skip
    head_R3P, tail_R3T = _weights(rows, inputs["input_ids"].shape[1], longest, device)
    return {layer: _average(before[layer], after.get(layer), head_R3P, tail_R3T) for layer in layers}


def _states(parts: Parts, layers: list[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """{layer: (R, T, D)} of a forward that goes no deeper than the last of `layers`."""
    found: dict[str, Tensor] = {}

    def see(layer: str, h_RTD: Tensor) -> None:
        found[layer] = h_RTD
        if layer == layers[-1]:
            raise _Enough

    with watching(parts, layers, see), contextlib.suppress(_Enough):
        run()
    return found


def _weights(rows: Sequence[Branched], head: int, tail: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What each column adds to a branch's mean: (R, 3, P) of the left-padded shared part and (R, 3, T)."""
    weights = torch.zeros(len(rows), len(BRANCHES), head + tail)
    for number, row in enumerate(rows):
        for branch, positions in enumerate(row.wanted):
            for position in positions:
                column = head + position - row.shared  # the shared part ends at column `head`
                weights[number, branch, column] = 1 / len(positions)
    return weights[..., :head].to(device), weights[..., head:].to(device)


def _average(before_RPD: Tensor, after_QTD: Tensor | None, head_R3P: Tensor, tail_R3T: Tensor) -> Tensor:
    """(3R, D), fp32. States that no branch wants (pads among them) do not count, whatever they are."""
    used_RP = head_R3P.sum(1) > 0
    clean = torch.where(used_RP[..., None], before_RPD.float(), 0.0)
    mean_R3D = torch.einsum("rkp,rpd->rkd", head_R3P, clean)
    if after_QTD is not None:
        tail_QT = tail_R3T.flatten(0, 1)
        clean = torch.where(tail_QT[..., None] > 0, after_QTD.float(), 0.0)
        mean_R3D = mean_R3D + torch.einsum("qt,qtd->qd", tail_QT, clean).view_as(mean_R3D)
    return mean_R3D.flatten(0, 1)


def _answer(one: EncodedRow, pooling: str) -> tuple[int, ...]:
    if pooling == "last_answer":
        return (one.end - 1,)
    if pooling == "last_template":
        return (len(one.ids) - 1,)
    return tuple(range(one.prompt, one.end))


def _context(row: EncodedRow, token: str, name: str) -> tuple[int, ...]:
    if token == "last_prompt":
        return (len(row.ids) - 1,)
    image = set(row.image)
    kept = tuple(
        position
        for position in range(len(row.ids))
        if token == "mean_prompt" or (position in image) == (token == "mean_image")
    )
    if not kept:
        raise ValueError(f"row {name!r}: its prompt has no token for the context {token!r}")
    return kept
