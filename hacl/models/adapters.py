"""One adapter per model family: where the parts of a stock `transformers` model are, and how images become embeddings.

Everything outside this file speaks to a model through `Adapter`. Parts are found by structure (attribute names of the
stock classes), never by a guessed path; a model in which a part is missing is refused with the names that are near.

Shapes: I images, N image tokens per image, Dv vision width, D hidden size, R packed rows, T tokens per row,
V vocabulary.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hacl.models.attention_masks import additive_mask


class UnsupportedModelError(ValueError):
    """The model has no adapter, or a part that an adapter needs cannot be found in it."""


@dataclass
class Adapter(ABC):
    """Uniform access to the parts of a LLaVA-class model.

    `vision_features` is what a frozen tower's cache stores; `project` maps it to LLM embeddings; `decode` is the one
    decoder call of a training step. All modules are the model's own: training them trains the model.
    """

    model: nn.Module
    vision_tower: nn.Module
    projector: nn.Module
    decoder: nn.Module
    lm_head: nn.Module
    image_token_id: int

    @property
    def blocks(self) -> nn.ModuleList:
        return _part(self.decoder, "layers", nn.ModuleList)

    @property
    def final_norm(self) -> nn.Module:
        return _part(self.decoder, "norm")

    @property
    def embed_tokens(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    @property
    def hidden_size(self) -> int:
        return self.decoder.config.hidden_size

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def groups(self) -> dict[str, list[nn.Module]]:
        """Modules by the name under which a learning rate is given: vision, projector, llm."""
        return {"vision": [self.vision_tower], "projector": [self.projector], "llm": [self.decoder, self.lm_head]}

    @abstractmethod
    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, H, W) pixels -> (I, N, Dv) features selected from the tower, before the projector."""

    def project(self, features_INDv: Tensor) -> Tensor:
        """(I, N, Dv) -> (I, N, D) embeddings in the decoder's space."""
        dtype = next(self.projector.parameters()).dtype
        return self.projector(features_INDv.to(dtype))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids of any shape (...) -> embeddings (..., D)."""
        return self.embed_tokens(input_ids)

    def decode(
        self,
        inputs_embeds: Tensor,
        attention: Mapping[str, Any] | Tensor | None,
        position_ids: Tensor,
        layer: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder once over packed rows.

        inputs_embeds (R, T, D); attention: what `packed_attention` gives for the decoder's implementation, a boolean
        mask (R, 1, T, T), true where a query may look (for sdpa, segments and eager), or None for plain causal rows;
        position_ids (R, T). Returns the states after the final norm (R, T, D) and the states to read representations
        from: the same ones for `layer=None`, else the output of block `layer` (1..L) before any norm.
        """
        if not isinstance(attention, Mapping):
            attention = {"attention_mask": self._attention_mask(attention, inputs_embeds.dtype)}
        captured: list[Tensor] = []
        handle = None
        if layer is not None:
            if not 1 <= layer <= self.num_layers:
                raise ValueError(f"objective.layer={layer}: this model has blocks 1 to {self.num_layers}")
            following = self.final_norm if layer == self.num_layers else self.blocks[layer]
            handle = following.register_forward_pre_hook(
                lambda _, args, kwargs: captured.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        try:
            states_RTD = self.decoder(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                use_cache=False,
                **attention,
            ).last_hidden_state
        finally:
            if handle is not None:
                handle.remove()
        return states_RTD, captured[0] if captured else states_RTD

    def _attention_mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Boolean masks as `sdpa` takes them; `eager` adds its mask to the scores."""
        implementation = self.decoder.config._attn_implementation
        if mask is None or implementation in ("sdpa", "segments"):
            return mask
        if implementation != "eager":
            raise UnsupportedModelError(
                f"a mask over rows needs attn_implementation sdpa or eager, not {implementation}"
            )
        return additive_mask(mask, dtype)

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> logits (..., V)."""
        return self.lm_head(states)


class LlavaAdapter(Adapter):
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


class FastVlmAdapter(Adapter):
    """`FastVlmForConditionalGeneration`: a convolutional timm tower, whose (I, Dv, h, w) map becomes h*w tokens."""

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        tower = self.vision_tower
        features = tower(pixel_values.to(next(tower.parameters()).dtype)).last_hidden_state
        return features.flatten(2).transpose(1, 2)


FAMILIES = {"llava": LlavaAdapter, "fast_vlm": FastVlmAdapter}


def unwrap(model: nn.Module) -> nn.Module:
    """The stock model inside a PEFT wrapper (whose LoRA layers sit in place, so nothing is lost)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def auto_class(path: str | Path):
    """The `transformers` auto class that loads a checkpoint: of models that read images, or of text-only ones.

    path: a folder or hub id; only its config is read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    reads_images = AutoConfig.from_pretrained(path).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def find_adapter(model: nn.Module) -> Adapter:
    """Find the family of `model` (a stock class, or one wrapped by PEFT) and its parts.

    Raises `UnsupportedModelError` naming the known families, or the names near a missing part.
    """
    base = unwrap(model)
    family = getattr(base.config, "model_type", type(base).__name__)
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"no adapter for model_type {family!r} ({type(base).__name__}); known: {', '.join(sorted(FAMILIES))}"
        )
    body = _part(base, "model")
    language_model = _part(body, "language_model")
    return FAMILIES[family](
        model=base,
        vision_tower=_part(body, "vision_tower"),
        projector=_part(body, "multi_modal_projector"),
        decoder=language_model,
        lm_head=_part(base, "lm_head"),
        image_token_id=base.config.image_token_id,
    )


def _part(module: nn.Module, name: str, kind: type[nn.Module] = nn.Module) -> nn.Module:
    part = getattr(module, name, None)
    if isinstance(part, kind):
        return part
    children = [child for child, _ in module.named_children()]
    near = difflib.get_close_matches(name, children, n=3, cutoff=0.3) or children[:5]
    raise UnsupportedModelError(f"{type(module).__name__} has no {name!r}; near names: {', '.join(near) or 'none'}")
