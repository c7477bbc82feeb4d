"""Families in which a token may see later ones, so that every call of the decoder needs a mask of its own.

Shapes: R packed rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hacl.models.adapters import Adapter
from hacl.models.attention import masked_attention
from hacl.models.attention_masks import Reach


class MaskedAdapter(Adapter):
    """Attention along a token's own path and, in both directions, within the islands of a batch."""

    own_masks = True

    def attention(self, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        return {"attention_mask": self.mask(batch, dtype)}

    def mask(self, batch: Mapping[str, Tensor], dtype: torch.dtype, window: int | None = None) -> Any:
        """The mask of a batch's rows for a decoder block that looks back `window` tokens, None for all.

        Raises ValueError for a batch with images whose tokens are in no island.
        """
        islands_RT = batch.get("islands")
        if islands_RT is None:
            if (batch["image_source"] >= 0).any():
                raise ValueError("the batch has images but no 'islands': make it with PackedCollator")
            islands_RT = torch.full_like(batch["segment_ids"], -1)
        reach = Reach(islands_RT, batch["position_ids"], window)
        implementation = self.decoder.config._attn_implementation
        return masked_attention(implementation, batch["segment_ids"], batch.get("subtree_end"), reach, dtype)
