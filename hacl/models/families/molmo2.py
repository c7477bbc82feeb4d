"""Molmo2: pooled tokens of the whole image and of overlapping crops, whose features are added to embeddings.

Shapes: F image tokens, W width of features, R packed rows, T tokens per row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hacl.models.families.masked import MaskedAdapter


class Molmo2Adapter(MaskedAdapter):
    """`Molmo2ForConditionalGeneration`: as many tokens as the shape of an image asks for.

    All that is written for images, tokens of rows and columns too, sees all of it in its sequence, also what is written
    for other images; other tokens see what precedes them. Positions are one-dimensional. A sequence that begins with
    its image sees the beginning of the text's tokens and the template's words before it, and the image's states depend
    on nothing behind it where it is the only one, as where a state is read. `image_pool=last` reads the end of the last
    view, which has seen the whole image.
    """

    inputs = ("pixel_values", "image_token_pooling", "image_grids")

    def merge(self, batch: Mapping[str, Tensor], image_FW: Tensor) -> Tensor:
        """Embeddings (R, T, D) of a batch's rows, with features of images added in their places."""
        source_RT = batch["image_source"]
        embeds_RTD = self.embed(batch["input_ids"])
        added_RTD = image_FW[source_RT.clamp_min(0)].to(embeds_RTD.dtype)
        return embeds_RTD + added_RTD * (source_RT >= 0)[..., None]
