"""Steering spelt out: one row, no padding, no KV cache, no hooks; block after block, position after position.

What a session must equal. The forward is rewritten around the model's own blocks, and a new token recomputes all of
it. Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hacl.models.adapters import find_adapter

Change = Callable[[int, int, Tensor], Tensor]  # (layer, position, state (D)) -> state (D)


def forward(
    model, ids: Sequence[int], pixels: Tensor | None, change: Change | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits (T, V), and the output (T, D) of every block after the change."""
    adapter = find_adapter(model)
    tokens = torch.tensor(ids)
    states = adapter.embed(tokens).clone()
    if pixels is not None:
        images = adapter.project(adapter.vision_features(pixels[None])).flatten(0, 1)
        for place, state in zip((tokens == adapter.image_token_id).nonzero().flatten(), images, strict=True):
            states[place] = state
    count = len(ids)
    positions = torch.arange(count)[None]
    mask = torch.full((count, count), torch.finfo(states.dtype).min, dtype=states.dtype).triu(1)[None, None]
    rotary = adapter.decoder.rotary_emb(states[None], position_ids=positions)
    outputs = []
    for layer, block in enumerate(adapter.blocks):
        states = block(states[None], attention_mask=mask, position_ids=positions, position_embeddings=rotary)[0]
        if change is not None:
            states = torch.stack([change(layer, position, states[position]) for position in range(count)])
        outputs.append(states)
    return adapter.logits(adapter.final_norm(states)), outputs


EOS = 2  # of the tiny tokenizer; answers of a fixed length never choose it


def greedy(
    model, ids: Sequence[int], pixels: Tensor | None, change: Change | None, new: int
) -> tuple[list[int], Tensor]:
    """`new` tokens, the likeliest but EOS at each step, and the logits (new, V) they were chosen from."""
    ids, chosen = list(ids), []
    for _ in range(new):
        logits, _ = forward(model, ids, pixels, change)
        chosen.append(logits[-1])
        ids.append(int(logits[-1].index_fill(0, torch.tensor(EOS), -torch.inf).argmax()))
    return ids[-new:], torch.stack(chosen)


def is_steered(policy: str, position: int, prompt: int, image: Sequence[bool]) -> bool:
    """The rules in words: `image` tells which prompt positions are image tokens."""
    of_image = position < prompt and image[position]
    if policy.startswith("last-"):
        return position >= prompt - int(policy.removeprefix("last-"))
    return {
        "all": True, "prompt": position < prompt, "generated": position >= prompt, "image": of_image,
        "text": not of_image,
    }[policy]  # fmt: skip


def adding(vectors: dict[int, Tensor], alpha: float, policy: str, prompt: int, image: Sequence[bool]) -> Change:
    """h + alpha * v at the policy's positions of the layers in `vectors`."""

    def change(layer: int, position: int, state: Tensor) -> Tensor:
        if layer not in vectors or not is_steered(policy, position, prompt, image):
            return state
        return state + alpha * vectors[layer]

    return change


def apply(mode: str, state: Tensor, step: Tensor, clip: float) -> Tensor:
    """The norm modes for one state (D), coordinate by coordinate in double precision."""
    h, v = state.double().tolist(), step.double().tolist()
    length = sum(x * x for x in h) ** 0.5
    if mode == "clip":
        longest = sum(x * x for x in v) ** 0.5
        v = [x * min(1.0, clip * length / longest) for x in v]
    moved = [a + b for a, b in zip(h, v, strict=True)]
    if mode == "preserve":
        after = sum(x * x for x in moved) ** 0.5
        moved = [x * length / after for x in moved]
    return torch.tensor(moved, dtype=torch.float64)
