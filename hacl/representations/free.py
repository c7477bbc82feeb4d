"""Let a model write its own answers: to capture its states while it does, or to have a text that two models read.

Greedy decoding; a row ends at its first EOS, and what the batch computes for it afterwards is not kept.

Shapes: R rows, T tokens of one forward, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hacl.models.modes import evaluating
from hacl.representations.encoding import EncodedRow, RowEncoder
from hacl.representations.forward import watching
from hacl.representations.parts import Parts
from hacl.representations.samples import Sample


def write_answers(
    model: nn.Module, encoder: RowEncoder, rows: Sequence[EncodedRow], max_new_tokens: int
) -> list[list[int]]:
    """New token ids of each prompt, its EOS included where it came. Call inside `evaluating`."""
    inputs = encoder.batch(rows, next(model.parameters()).device, model.dtype)
    inputs.pop("position_ids", None)  # `generate` makes them from the mask
    eos = end_ids(model, encoder)
    output = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=encoder.pad,
        eos_token_id=eos,
    )
    return [_until_end(ids, eos) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]


def write_and_watch(
    model: nn.Module,
    parts: Parts,
    encoder: RowEncoder,
    rows: Sequence[EncodedRow],
    layers: Sequence[str],
    max_new_tokens: int,
) -> tuple[list[EncodedRow], dict[str, Tensor]]:
    """Rows with their answers, and {layer: (R, S, D)} on the device, over every column that was computed.

    The last token of an answer has no state: nothing was predicted from it.
    """
    steps: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with watching(parts, layers, lambda layer, h_RTD: steps[layer].append(h_RTD)):
        answers = write_answers(model, encoder, rows, max_new_tokens)
    eos = end_ids(model, encoder)
    written = []
    for row, ids in zip(rows, answers, strict=True):
        whole, ended = row.ids + ids, bool(ids) and ids[-1] in eos
        written.append(replace(row, ids=whole, end=len(whole) - ended))
    return written, {layer: torch.cat(steps.pop(layer), dim=1) for layer in layers}


def end_ids(model: nn.Module, encoder: RowEncoder) -> list[int]:
    """The token ids that end an answer: the tokenizer's EOS and those of the model's own settings."""
    own = model.generation_config.eos_token_id
    return sorted({encoder.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())})


def generate_answers(
    model: nn.Module,
    encoder: RowEncoder,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    progress: bool = True,
) -> dict[str, str]:
    """{sample id: greedy answer}: what `capture(answer=...)` takes, so that another model reads this one's output."""
    found: dict[str, str] = {}
    eos = end_ids(model, encoder)  # may hold words of the vocabulary, which are not part of an answer
    with evaluating(model), tqdm(total=len(samples), desc="answers", disable=not progress, leave=False) as bar:
        for start in range(0, len(samples), batch_size):
            chosen = samples[start : start + batch_size]
            rows = [encoder.row(sample, None) for sample in chosen]
            for sample, ids in zip(chosen, write_answers(model, encoder, rows, max_new_tokens), strict=True):
                found[sample.id] = encoder.decode(ids[:-1] if ids[-1:] and ids[-1] in eos else ids).strip()
            bar.update(len(chosen))
    return found


def _until_end(ids: list[int], eos: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in eos), None)
    return ids if end is None else ids[: end + 1]
