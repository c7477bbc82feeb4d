"""One adapter per model family: where the parts of a stock `transformers` model are, and how images become embeddings.

Everything else speaks to a model through `Adapter`; the families are in `hacl.models.families`. Parts are found by
structure (attribute names of the stock classes), never by a guessed path; a model in which a part is missing is refused
with the names that are near.

Shapes: I images, N image tokens per image, F image tokens of a batch, Dv vision width, D hidden size, W width of an
image's features, R packed rows, T tokens per row, V vocabulary.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hacl.models.attention import packed_attention
from hacl.models.attention_masks import additive_mask


class UnsupportedModelError(ValueError):
    """The model has no adapter, or a part that an adapter needs cannot be found in it."""


@dataclass
class Adapter:
    """Uniform access to the parts of a multimodal model.

    A batch is what `PackedCollator` returns: token ids, positions, segments, where each image token comes from, and the
    tensors `inputs` of its images in order. A step calls `image_embeddings`, `merge`, `attention`, `positions`,
    `decoder_inputs` and `decode`; a family overrides what is special about it. All modules are the model's own:
    training them trains the model.

    vision_tower and projector: a module, or a ModuleList of the parts that one consists of; parameters: attribute paths
    of parameters outside all modules, which belong to the projector.

    Class attributes, attribute paths from the model: VISION, CONNECTOR (may lie inside a tower, whose other parts are
    then the tower), PARAMETERS, DECODER, LM_HEAD; NORM: of the decoder; IMAGE_TOKEN: the name in the model's config.
    inputs: tensors that the stock processor makes of an image and `get_image_features` takes (`ImageFormat.names`).
    own_positions: `positions` continues rotary positions of several axes along a row; position_inputs: those of
    `inputs` that it reads, which whoever keeps the features of images keeps with them. own_masks: `attention` gives
    masks because tokens see later ones, or windows within sequences; forms: of `objective.form`, those that are exact.
    """

    model: nn.Module
    vision_tower: nn.Module
    projector: nn.Module
    decoder: nn.Module
    lm_head: nn.Module
    image_token_id: int
    parameters: tuple[str, ...] = field(default=())

    VISION: ClassVar[tuple[str, ...]] = ("model.vision_tower",)
    CONNECTOR: ClassVar[tuple[str, ...]] = ("model.multi_modal_projector",)
    PARAMETERS: ClassVar[tuple[str, ...]] = ()
    DECODER: ClassVar[str] = "model.language_model"
    LM_HEAD: ClassVar[str] = "lm_head"
    NORM: ClassVar[str] = "norm"
    IMAGE_TOKEN: ClassVar[str] = "image_token_id"
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    own_positions: ClassVar[bool] = False
    own_masks: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("in_place", "eos_branch", "strict")
    position_inputs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def find(cls, model: nn.Module) -> Adapter:
        """The parts of a stock model. Raises `UnsupportedModelError` naming what is near a missing part."""
        connectors = [_at(model, path) for path in cls.CONNECTOR]
        towers = [part for path in cls.VISION for part in _without(_at(model, path), connectors)]
        return cls(
            model=model,
            vision_tower=_joined(towers),
            projector=_joined(connectors),
            decoder=_at(model, cls.DECODER),
            lm_head=_at(model, cls.LM_HEAD),
            image_token_id=getattr(model.config, cls.IMAGE_TOKEN),
            parameters=cls.PARAMETERS,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        return _part(self.decoder, "layers", nn.ModuleList)

    @property
    def final_norm(self) -> nn.Module:
        return _part(self.decoder, self.NORM)

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
        alone = [self.model.get_parameter(path) for path in self.parameters]
        return {
            "vision": _parts(self.vision_tower),
            "projector": [*_parts(self.projector), *([nn.ParameterList(alone)] if alone else [])],
            "llm": [self.decoder, self.lm_head],
        }

    def unread(self) -> list[nn.Module]:
        """Modules of towers and projector that no loss reaches: a sharded run would wait for their gradient in vain."""
        return []

    # From images to embeddings

    @property
    def is_split(self) -> bool:
        """Whether tower and projector can be run apart, so that features of a frozen tower can be cached."""
        return isinstance(self, SplitAdapter)

    def image_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a batch's images."""
        return {name: batch[name] for name in self.inputs}

    def image_embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (F, W) of the image tokens of all images, in order, from the tensors of the images.

        W is D, or more where a family adds features later on (`decoder_inputs`). The stock `get_image_features` is
        called, which pads and packs as the family does.
        """
        return flat_features(self.stock_features(inputs).pooler_output)

    def stock_features(self, inputs: Mapping[str, Tensor]) -> Any:
        """The output of the stock `get_image_features`."""
        owner = self.model if hasattr(self.model, "get_image_features") else self.model.model
        return owner.get_image_features(**self._cast(inputs), return_dict=True)

    def _cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Numbers in the dtype of the tower."""
        dtype = next(self.vision_tower.parameters()).dtype
        return {name: each.to(dtype) if each.is_floating_point() else each for name, each in inputs.items()}

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids of any shape (...) -> embeddings (..., D)."""
        return self.embed_tokens(input_ids)

    def merge(self, batch: Mapping[str, Tensor], image_FW: Tensor) -> Tensor:
        """Embeddings (R, T, D) of a batch's rows, with features of images in their places."""
        source_RT = batch["image_source"]
        embeds_RTD = self.embed(batch["input_ids"])
        chosen_RTD = image_FW[:, : self.hidden_size][source_RT.clamp_min(0)].to(embeds_RTD.dtype)
        return torch.where((source_RT >= 0)[..., None], chosen_RTD, embeds_RTD)

    # What the decoder is called with

    def attention(self, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """Keywords that let every token of the rows see its own sequence only; see `packed_attention`."""
        implementation = self.decoder.config._attn_implementation
        return packed_attention(implementation, batch["segment_ids"], batch.get("subtree_end"), dtype)

    def positions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Positions of the tokens of the rows: (R, T), or (axes, R, T) in families with several axes."""
        return batch["position_ids"]

    def decoder_inputs(self, batch: Mapping[str, Tensor], image_FW: Tensor) -> dict[str, Any]:
        """Further keywords of the decoder call. image_FW: what `image_embeddings` gave for this batch."""
        return {}

    def decode_batch(
        self, batch: Mapping[str, Tensor], image_FW: Tensor, layer: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The one decoder call of a step over a batch whose images have these features; returns as `decode` does."""
        embeds_RTD = self.merge(batch, image_FW)
        attention = self.attention(batch, embeds_RTD.dtype)
        further = self.decoder_inputs(batch, image_FW)
        return self.decode(embeds_RTD, attention, self.positions(batch), layer, **further)

    def decode(
        self,
        inputs_embeds: Tensor,
        attention: Mapping[str, Any] | Tensor | None,
        position_ids: Tensor,
        layer: int | None = None,
        **further: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder once over packed rows.

        inputs_embeds (R, T, D); attention: what `packed_attention` gives for the decoder's implementation, a boolean
        mask (R, 1, T, T), true where a query may look (for sdpa, segments and eager), or None for plain causal rows;
        position_ids (R, T) or (axes, R, T); further: keywords of the decoder. Returns the states after the final norm
        (R, T, D) and the states to read representations from: the same ones for `layer=None`, else the output of block
        `layer` (1..L) before any norm, as the next block reads it.
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
                **further,
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


class SplitAdapter(Adapter, ABC):
    """A family of one number of tokens per image, whose tower and projector are two calls: `vision_features` is what a
    frozen tower's cache stores, and `project` maps it to LLM embeddings."""

    @abstractmethod
    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, H, W) pixels -> (I, N, Dv) features selected from the tower, before the projector."""

    def project(self, features_INDv: Tensor) -> Tensor:
        """(I, N, Dv) -> (I, N, D) embeddings in the decoder's space."""
        dtype = next(self.projector.parameters()).dtype
        return self.projector(features_INDv.to(dtype))

    def image_embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            features_INDv = self.vision_features(inputs["pixel_values"])
        return self.project(features_INDv).flatten(0, 1)


def flat_features(features: Any) -> Tensor:
    """Features of images, a tensor (I, N, D) or a list of (N, D), one after the other: (F, D)."""
    return features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(list(features))


def check_image_count(written: int, produced: int) -> None:
    """Refuse a processor whose number of image tokens is not that of the features. Raises ValueError."""
    if written != produced:
        raise ValueError(
            f"wrong image-token count: the processor writes {written} image tokens, the vision tower and projector "
            f"give {produced}; correct patch_size, num_additional_image_tokens or vision_feature_select_strategy in "
            "the checkpoint's processor_config.json"
        )


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
    from hacl.models.families import FAMILIES

    base = unwrap(model)
    family = getattr(base.config, "model_type", type(base).__name__)
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"no adapter for model_type {family!r} ({type(base).__name__}); known: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[family].find(base)


def _at(model: nn.Module, path: str) -> nn.Module:
    for name in path.split("."):
        model = _part(model, name)
    return model


def _part(module: nn.Module, name: str, kind: type[nn.Module] = nn.Module) -> nn.Module:
    part = getattr(module, name, None)
    if isinstance(part, kind):
        return part
    children = [child for child, _ in module.named_children()]
    near = difflib.get_close_matches(name, children, n=3, cutoff=0.3) or children[:5]
    raise UnsupportedModelError(f"{type(module).__name__} has no {name!r}; near names: {', '.join(near) or 'none'}")


def _without(module: nn.Module, others: list[nn.Module]) -> list[nn.Module]:
    """The module, or its parts where some of it is one of the others."""
    if any(module is other for other in others):
        return []
    inside = set(module.modules())
    if not any(other in inside for other in others):
        return [module]
    return [part for child in module.children() for part in _without(child, others)]


def _joined(parts: list[nn.Module]) -> nn.Module:
    return parts[0] if len(parts) == 1 else _Parts(parts)


def _parts(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, _Parts) else [module]


class _Parts(nn.ModuleList):
    """Parts of a model that lie apart; not a module of the model itself."""
