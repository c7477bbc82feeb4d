"""The LLaVA line: a ViT tower and a projector (LLaVA), tiles with line ends (LLaVA-NeXT), a convolutional tower.

In all of them attention is causal, positions are one-dimensional, and an image is nothing but image tokens, so that
`image_pool=last` reads the state of the image's last feature. A sequence that begins with its image sees the beginning
of the text's tokens (BOS) before it and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hacl.models.adapters import Adapter, SplitAdapter


class LlavaAdapter(SplitAdapter):
    """`LlavaForConditionalGeneration` (LLaVA, LLaVA-1.5): a ViT tower, of which one layer or several are selected."""

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        config = self.model.config
        layers = config.vision_feature_layer
        tower = self.vision_tower
        hidden = tower(pixel_values.to(next(tower.parameters()).dtype), output_hidden_states=True).hidden_states
        chosen = [hidden[i] for i in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            chosen = [states[:, 1:] for states in chosen]
        return torch.cat(chosen, dim=-1)

    def unread(self) -> list[nn.Module]:
        return after_layer(self)


class FastVlmAdapter(SplitAdapter):
    """`FastVlmForConditionalGeneration`: a convolutional timm tower, whose (I, Dv, h, w) map becomes h*w tokens."""

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        tower = self.vision_tower
        features = tower(pixel_values.to(next(tower.parameters()).dtype)).last_hidden_state
        return features.flatten(2).transpose(1, 2)

    def unread(self) -> list[nn.Module]:
        return heads(self.vision_tower)


class LlavaNextAdapter(Adapter):
    """`LlavaNextForConditionalGeneration`: the whole image and its tiles, less their padding, with a learnt line end
    after each row of tiles. As many tokens as the image's shape asks for."""

    PARAMETERS = ("model.image_newline",)
    inputs = ("pixel_values", "image_sizes")

    def unread(self) -> list[nn.Module]:
        return after_layer(self)


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """`LlavaOnevisionForConditionalGeneration`: tiles as in LLaVA-NeXT, shrunk where they are too many, for an image
    that is alone in its text; else the whole image with one line end."""

    inputs = ("pixel_values", "image_sizes", "batch_num_images")


def after_layer(adapter: Adapter) -> list[nn.Module]:
    """Blocks of the tower after the last layer that `vision_feature_layer` selects, with norm and pooling."""
    tower, layer = adapter.vision_tower, adapter.model.config.vision_feature_layer
    stacks = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return []
    blocks = max(stacks, key=len)
    chosen = [layer] if isinstance(layer, int) else list(layer)
    last = max(index if index >= 0 else len(blocks) + 1 + index for index in chosen)
    norms = [module for name, module in tower.named_modules() if name.endswith("post_layernorm")]
    return [*blocks[last:], *norms, *heads(tower)]


def heads(tower: nn.Module) -> list[nn.Module]:
    """What gives one vector for an image (the attention pooling of SigLIP, the head of a timm model)."""
    return [module for name, module in tower.named_modules() if name.rsplit(".", 1)[-1] == "head"]
