"""Gemma 3 and PaliGemma: a SigLIP tower and a projector before a Gemma decoder, whose embeddings are scaled.

The decoder's own embedding scales token embeddings by the square root of the hidden size; image features are not.

Shapes: I images, N image tokens, Dv vision width, R packed rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hacl.models.adapters import Adapter, SplitAdapter, UnsupportedModelError
from hacl.models.families.masked import MaskedAdapter


class _SiglipAdapter(MaskedAdapter, SplitAdapter):
    """All states of the tower's last layer are projected."""

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        tower = self.vision_tower
        return tower(pixel_values.to(next(tower.parameters()).dtype)).last_hidden_state


class Gemma3Adapter(_SiglipAdapter):
    """`Gemma3ForConditionalGeneration`: the tokens of one image see each other, all others what precedes them.

    Some blocks look back over a window only; it is measured within a sequence, by positions, and hides parts of an
    image that lie too far back too. A sequence that begins with its image sees the beginning of the text's tokens and
    the template's words before it. The span of an image begins with the token that announces it and ends with the one
    that closes it, which has seen the whole image (within the window, where a block has one): `image_pool=last` reads
    that token's state and `mean` averages over both too. Nothing in the span depends on what follows it.
    """

    def attention(self, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        windows = {"full_attention": None, "sliding_attention": self.decoder.config.sliding_window}
        return {"attention_mask": {kind: self.mask(batch, dtype, window) for kind, window in windows.items()}}


class PaliGemmaAdapter(_SiglipAdapter):
    """`PaliGemmaForConditionalGeneration` over Gemma: all of a prompt sees all of it, an answer what precedes it.

    The image stands before the beginning of the text's tokens, and positions begin at 1. In a generation sequence an
    image's state therefore depends on the prompt, so `objective.form=strict` is the only one: there the image's tokens
    see each other, and the EOS behind them sees all of them and is seen by none. `image_pool=last` reads the EOS and
    `mean` the image tokens. A text by itself is an answer to no prompt: it is causal, as its tokens are in a generation
    sequence. The stock model says the same with `token_type_ids` of 1 for the answer and 0 before it.
    """

    forms = ("strict",)

    @classmethod
    def find(cls, model: nn.Module) -> Adapter:
        """See `Adapter.find`. Raises `UnsupportedModelError` for PaliGemma 2."""
        cap = getattr(model.config.text_config, "final_logit_softcapping", None)
        if cap is not None:
            raise UnsupportedModelError(
                f"this PaliGemma caps its logits at {cap} (final_logit_softcapping, as PaliGemma 2 does), which losses "
                "here do not; use a PaliGemma over Gemma 1"
            )
        return super().find(model)

    def positions(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["position_ids"] + 1

    def decode(
        self,
        inputs_embeds: Tensor,
        attention: Mapping[str, Any] | Tensor | None,
        position_ids: Tensor,
        layer: int | None = None,
        **further: Any,
    ) -> tuple[Tensor, Tensor]:
        """See `Adapter.decode`. Plain causal rows get a mask here: without one, in the stock decoder all see all."""
        if attention is None:
            rows, tokens, _ = inputs_embeds.shape
            segments_RT = torch.ones(rows, tokens, dtype=torch.long, device=inputs_embeds.device)
            batch = {"segment_ids": segments_RT, "position_ids": position_ids, "islands": -segments_RT}
            attention = self.attention(batch, inputs_embeds.dtype)
        return super().decode(inputs_embeds, attention, position_ids, layer, **further)
