"""A tiny family as the auto classes load it, and what is seen when it runs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.families.common import encode, prompt
from tests.families.facts import Facts

WORDS = "describe the image ."


@dataclass
class Family:
    """A family as the auto classes load it, and one image of each of `SHAPES`."""

    name: str
    facts: Facts
    model: Any
    processor: Any
    images: list[Image.Image]

    def inputs(self, image: int = 0, words: str = WORDS):
        return encode(self.processor, [[self.images[image]]], [prompt(self.processor, words)])

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def template(self) -> str:
        """What records are rendered with: PaliGemma knows one prompt and one answer, whatever its template says."""
        return "chat" if self.processor.chat_template and not self.facts.prompt_sees_prompt else "plain"

    def token_types(self, ids: Tensor, prompt: int) -> dict[str, Tensor]:
        """What the stock model takes to know which of the tokens (1, T) see each other; prompt: tokens up to it."""
        names = {"mm_token_type_ids", "token_type_ids"} & self.facts.tensors
        if self.facts.prompt_sees_prompt:
            return {name: (torch.arange(ids.shape[1]) >= prompt).int()[None] for name in names}
        return {name: torch.tensor(self.processor.create_mm_token_type_ids(ids.tolist())) for name in names}

    @property
    def decoder(self):
        return self.model.get_submodule(self.facts.decoder)

    @property
    def image_id(self) -> int:
        return getattr(self.model.config, self.facts.image_token_attribute)

    @torch.no_grad()
    def decoder_call(self, inputs) -> tuple[dict[str, Any], Tensor, dict[str, Any]]:
        """What the decoder is called with, and what its first block reads: keywords, hidden states, keywords."""
        seen: dict[str, Any] = {}
        hooks = [
            self.decoder.register_forward_pre_hook(lambda _, args, kw: seen.update(decoder=kw), with_kwargs=True),
            self.decoder.layers[0].register_forward_pre_hook(
                lambda _, args, kw: seen.update(block=kw, states=args[0] if args else kw["hidden_states"]),
                with_kwargs=True,
            ),
        ]
        try:
            self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen["decoder"], seen["states"], seen["block"]

    def image_features(self, inputs):
        method = self.model.get_submodule(self.facts.owner).get_image_features
        known = inspect.signature(method).parameters
        with torch.no_grad():
            return method(**{name: value for name, value in inputs.items() if name in known})


def visible(facts: Facts, inputs) -> Tensor:
    """(T, T): which position (column) each position (row) of a prompt with one image sees."""
    size = inputs["input_ids"].shape[1]
    mask = torch.ones(size, size, dtype=torch.bool)
    if facts.prompt_sees_prompt:
        return mask
    mask = mask.tril()
    if facts.image_sees_image:
        kinds = inputs[facts.mask_input][0] == 1
        mask |= kinds[:, None] & kinds[None]
    return mask


def sees(family: Family, inputs, reader: int) -> Tensor:
    """For each position, whether the logits at `reader` depend on what the decoder is given there."""
    held: list[Tensor] = []

    def hold(_, args, kwargs):
        kwargs["inputs_embeds"] = kwargs["inputs_embeds"].detach().requires_grad_()
        held.append(kwargs["inputs_embeds"])
        return args, kwargs

    hook = family.decoder.register_forward_pre_hook(hold, with_kwargs=True)
    try:
        logits = family.model(**inputs).logits
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, reader].square().sum(), held)
    return gradient[0].abs().sum(-1) > 0
