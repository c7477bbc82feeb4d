"""The first DeepSeek-VL: a SigLIP tower (1.3B), and a SAM tower beside it for the same places (7B, hybrid).

Attention is causal, positions are one-dimensional, and an image is nothing but a fixed number of image tokens, so that
`image_pool=last` reads the state of the image's last feature. A sequence that begins with its image sees the beginning
of the text's tokens (BOS) before it and nothing else.
"""

from __future__ import annotations

from torch import Tensor, nn

from hacl.models.adapters import Adapter, SplitAdapter
from hacl.models.families.llava import heads


class DeepseekVLAdapter(SplitAdapter):
    """`DeepseekVLForConditionalGeneration`: states of the SigLIP tower through an aligner of two layers."""

    VISION = ("model.vision_model",)
    CONNECTOR = ("model.aligner",)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        tower = self.vision_tower
        return tower(pixel_values.to(next(tower.parameters()).dtype)).last_hidden_state

    def unread(self) -> list[nn.Module]:
        return heads(self.vision_tower)


class DeepseekVLHybridAdapter(Adapter):
    """`DeepseekVLHybridForConditionalGeneration`: half of each feature is of SigLIP, half of SAM at a larger size,
    whose states of the last and the first global block are added with a learnt weight. Features of both come from one
    call, so those of a frozen tower are not cached."""

    VISION = ("model.vision_model", "model.high_res_vision_model")
    CONNECTOR = ("model.aligner", "model.high_res_vision_neck", "model.high_res_vision_proj")
    PARAMETERS = ("model.high_res_vision_alpha",)
    inputs = ("pixel_values", "high_res_pixel_values")

    def unread(self) -> list[nn.Module]:
        return heads(self.vision_tower)
