"""Idefics3 and SmolVLM: tiles and the whole image, a SigLIP tower, pixel shuffle and one linear layer.

Attention is causal and positions are one-dimensional. The processor writes markers of rows and columns between the
tiles, which are text tokens with embeddings of their own, and one marker behind the last: an image's span is all of
them, `image_pool=last` reads the state of that marker, which has seen every tile, and `mean` averages over markers too.
A sequence that begins with its image sees the beginning of the text's tokens (BOS) before it and nothing else.
"""

from __future__ import annotations

from hacl.models.adapters import Adapter


class Idefics3Adapter(Adapter):
    """`Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`: as many tiles as the shape asks for."""

    VISION = ("model.vision_model",)
    CONNECTOR = ("model.connector",)
    DECODER = "model.text_model"
    inputs = ("pixel_values", "pixel_attention_mask")
