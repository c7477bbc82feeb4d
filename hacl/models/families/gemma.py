"""Gemma 3 and PaliGemma: a SigLIP tower and a projector before a Gemma decoder, whose embeddings are scaled.

The decoder's own embedding scales token embeddings by the square root of the hidden size; image features are not.

Shapes: I images, N image tokens, Dv vision width, R packed rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hacl.models.adapters import SplitAdapter
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
