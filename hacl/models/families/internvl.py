"""InternVL: tiles and a thumbnail, a ViT tower, pixel shuffle and a projector of two layers.

Attention is causal and positions are one-dimensional. The processor writes one token before and one behind the features
of all tiles: an image's span is all of them, `image_pool=last` reads the state of the closing token, which has seen
every tile, and `mean` averages over both. A sequence that begins with its image sees the beginning of the text's tokens
(BOS, where the tokenizer has one) before it and nothing else.
"""

from __future__ import annotations

from torch import nn

from hacl.models.adapters import Adapter
from hacl.models.families.llava import after_layer


class InternVLAdapter(Adapter):
    """`InternVLForConditionalGeneration`: as many tiles as the shape asks for, of one number of tokens each."""

    def unread(self) -> list[nn.Module]:
        behind = [] if self.model.config.vision_feature_layer == -1 else [self.vision_tower.layernorm]
        return [*after_layer(self), *behind]
