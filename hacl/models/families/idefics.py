"""The Idefics line: Idefics2 (a SigLIP tower and a resampler), Idefics3 and SmolVLM (tiles, pixel shuffle, one linear).

Attention is causal and positions are one-dimensional. The processor writes one marker before and one
behind an image, in Idefics3 and SmolVLM also markers of rows and columns between the tiles; they are text tokens with
embeddings of their own. An image's span is all of them, `image_pool=last` reads the state of the last marker, which has
seen the whole image, and `mean` averages over markers too. In Idefics2 an image right behind another one shares its
marker, so the span of the second begins after it.
A sequence that begins with its image sees the beginning of the text's tokens (BOS) before it and nothing else.
"""

from __future__ import annotations

from hacl.models.adapters import Adapter


class Idefics2Adapter(Adapter):
    """`Idefics2ForConditionalGeneration`: a fixed number of resampled features for an image, or for each of five where
    the processor splits it; the image keeps its proportions, and those of one call are padded with a mask."""

    VISION = ("model.vision_model",)
    CONNECTOR = ("model.connector",)
    DECODER = "model.text_model"
    inputs = ("pixel_values", "pixel_attention_mask")


class Idefics3Adapter(Adapter):
    """`Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`: as many tiles as the shape asks for."""

    VISION = ("model.vision_model",)
    CONNECTOR = ("model.connector",)
    DECODER = "model.text_model"
    inputs = ("pixel_values", "pixel_attention_mask")
