"""The Qwen-VL line: one token for a square of patches, positions in time, height and width.

Attention is causal. An image's tokens lie at one point in time, at their row and column, and the text behind them goes
on after the larger of its sides, so a text's positions depend on the images before it (Wang et al., arXiv 2409.12191,
section 2.1); positions of a packed row are those of its sequences alone. Where a sequence has no image before a token,
its three positions are the one-dimensional one. The span of an image begins with the token that announces it and ends
with the one that closes it, whose state `image_pool=last` reads.

Shapes: I images, F image tokens, D hidden size, L layers with DeepStack, R packed rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hacl.models.adapters import Adapter, flat_features
from hacl.models.attention_masks import subtree_ends


class Qwen2VLAdapter(Adapter):
    """`Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`; the merger is the projector."""

    VISION = ("model.visual",)
    CONNECTOR = ("model.visual.merger",)
    inputs = ("pixel_values", "image_grid_thw")
    own_positions = True
    position_inputs = ("image_grid_thw",)

    def positions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(3, R, T), for every sequence those of the stock `get_rope_index`; (R, T) where no image is given."""
        if "image_grid_thw" not in batch:
            return batch["position_ids"]
        merge = self.model.config.vision_config.spatial_merge_size
        return rotary_positions(batch, batch["image_grid_thw"], merge)


class Qwen3VLAdapter(Qwen2VLAdapter):
    """`Qwen3VLForConditionalGeneration` and its mixture of experts: features of several tower layers are added to the
    states of image tokens after the first decoder blocks (DeepStack).

    Rows of `image_embeddings` hold the embedding and the features for each of these blocks, W = (1 + L) D. The states
    that `decode` reads for one of these blocks are those that the next block reads, with the features; what the block
    itself returns, and what the stock `hidden_states` list, lacks them.
    """

    CONNECTOR = ("model.visual.merger", "model.visual.deepstack_merger_list")

    def image_embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        found = self.stock_features(inputs)
        parts = [found.pooler_output, *found.deepstack_features]
        return torch.cat([flat_features(part) for part in parts], dim=-1)

    def decoder_inputs(self, batch: Mapping[str, Tensor], image_FW: Tensor) -> dict[str, Any]:
        source_RT = batch["image_source"]
        is_image_RT = source_RT >= 0
        chosen = image_FW[source_RT[is_image_RT]]
        layers = chosen.split(self.hidden_size, dim=-1)[1:]
        return {"visual_pos_masks": is_image_RT, "deepstack_visual_embeds": list(layers)}


def rotary_positions(batch: Mapping[str, Tensor], grid_I3: Tensor, merge: int) -> Tensor:
    """Positions (3, R, T) of packed rows in time, height and width.

    grid_I3: patches of each image in time, height and width; merge: patches of a side that make one token. A token's
    position is its place in its sequence, less what each image before it takes more places than positions.
    """
    place_3F, saved_F = _within_images(batch, grid_I3, merge)
    depth_RT, source_RT = batch["position_ids"], batch["image_source"]
    is_image_RT, index_RT = source_RT >= 0, source_RT.clamp_min(0)
    saved_RT = torch.where(is_image_RT, saved_F[index_RT], 0)
    text_RT = depth_RT - _seen_before(saved_RT, batch["segment_ids"], batch.get("subtree_end"))
    return torch.where(is_image_RT, text_RT + place_3F[:, index_RT], text_RT)


def _within_images(batch: Mapping[str, Tensor], grid_I3: Tensor, merge: int) -> tuple[Tensor, Tensor]:
    """For each image token its offset (3, F) from a plain count of places, and (F,) how many more places than positions
    its image takes, at the image's last token and 0 elsewhere."""
    image_F = batch["image_tokens"]
    time_I, height_I, width_I = (grid_I3 // grid_I3.new_tensor([1, merge, merge])).to(image_F.device).unbind(-1)
    count_I = time_I * height_I * width_I
    first_I = count_I.cumsum(0) - count_I
    rank_F = torch.arange(len(image_F), device=image_F.device) - first_I[image_F]
    height_F, width_F = height_I[image_F], width_I[image_F]
    place_3F = torch.stack([rank_F // (height_F * width_F), rank_F // width_F % height_F, rank_F % width_F])
    is_last_F = rank_F == count_I[image_F] - 1
    more_I = count_I - torch.maximum(height_I, width_I)
    return place_3F - rank_F, torch.where(is_last_F, more_I[image_F], 0)


def _seen_before(values_RT: Tensor, segment_ids_RT: Tensor, subtree_end_RT: Tensor | None) -> Tensor:
    """For every token the sum of the values of the tokens before it on its own path."""
    ends_RT = subtree_ends(segment_ids_RT) if subtree_end_RT is None else subtree_end_RT
    rows, tokens = values_RT.shape
    steps = values_RT.new_zeros(rows, tokens + 1)
    steps[:, 1:] += values_RT
    steps.scatter_add_(1, ends_RT, -values_RT)
    return steps.cumsum(1)[:, :tokens]
