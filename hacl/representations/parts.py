"""Where the layers of a model are: through its family's adapter, or by structure in any other stock decoder.

Layers by name: "embed" is what enters the first decoder block (image tokens in place), "0" to "L-1" the output of each
block, "final_norm" what enters the LM head.

Shapes: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hacl.models.adapters import UnsupportedModelError, find_adapter, unwrap
from hacl.models.families import FAMILIES

BLOCKS = ("layers", "h", "blocks", "block")
NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
EMBED, FINAL_NORM = "embed", "final_norm"


@dataclass(frozen=True)
class Parts:
    """model: without a PEFT wrapper; image_token_id: None for a text-only model."""

    model: nn.Module
    decoder: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    lm_head: nn.Module
    image_token_id: int | None

    @property
    def hidden_size(self) -> int:
        return self.lm_head.weight.shape[1]

    def order(self) -> list[str]:
        """Every layer's name, in the order in which a forward computes them."""
        return [EMBED, *map(str, range(len(self.blocks))), FINAL_NORM]

    def resolve(self, layers: Sequence[int | str] | int | str) -> list[str]:
        """Names of the layers that integers (negative from the end), names or ranges "2-5" mean, in forward order.

        Raises:
            ValueError: none is named, one is unknown (near names are listed), or one is named twice.
        """
        wanted = [layers] if isinstance(layers, int | str) else list(layers)
        names = [name for layer in wanted for name in self._names(layer)]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"layers={wanted}: name at least one layer, and each once (they mean {names})")
        return sorted(names, key=self.order().index)

    def _names(self, layer: int | str) -> list[str]:
        order, count = self.order(), len(self.blocks)
        if isinstance(layer, int) and not isinstance(layer, bool) and -count <= layer < count:
            return [str(layer % count)]
        if layer == "all":
            return order
        if layer in order:
            return [str(layer)]
        low, dash, high = str(layer).partition("-")
        if dash and low.isdigit() and high.isdigit() and int(low) <= int(high) < count:
            return [str(index) for index in range(int(low), int(high) + 1)]
        near = difflib.get_close_matches(str(layer), order, n=3, cutoff=0.3)
        raise ValueError(
            f"layer {layer!r}: expected 0 to {count - 1} (or -{count} to -1), a range such as '0-{count - 1}', "
            f"'{EMBED}', '{FINAL_NORM}' or 'all'{'; near: ' + ', '.join(near) if near else ''}"
        )

    def head_weight(self) -> Tensor:
        """(V, D) of the LM head as it computes now: with its LoRA where it has one that is switched on."""
        head = self.lm_head
        if not hasattr(head, "base_layer"):
            return head.weight
        weight = head.get_base_layer().weight
        if head.merged or head.disable_adapters:
            return weight
        return weight + sum(head.get_delta_weight(name) for name in head.active_adapters if name in head.lora_A)

    def norm_kind(self) -> tuple[str, float, Tensor | None, Tensor | None]:
        """("rms" or "layer", eps, weight (D,), bias (D,) or None) of the final norm, found by trying it.

        Raises:
            ValueError: it computes neither.
        """
        norm, width = self.final_norm, self.hidden_size
        weight = getattr(norm, "weight", None)
        eps = next((float(v) for v in (getattr(norm, k, None) for k in ("variance_epsilon", "eps")) if v), 1e-6)
        bias = getattr(norm, "bias", None)
        device, dtype = self.lm_head.weight.device, self.lm_head.weight.dtype
        probe_ND = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        with torch.no_grad():
            expected_ND = norm(probe_ND).float()
        for kind in ("rms", "layer"):
            x_ND = probe_ND.float()
            x_ND = x_ND - x_ND.mean(-1, keepdim=True) if kind == "layer" else x_ND
            x_ND = x_ND / (x_ND.pow(2).mean(-1, keepdim=True) + eps).sqrt()
            for gain in (weight, None if weight is None else weight + 1):  # Gemma stores its weight minus one
                scaled = x_ND if gain is None else x_ND * gain.float()
                scaled = scaled if bias is None else scaled + bias.float()
                if torch.allclose(scaled, expected_ND, rtol=2e-2, atol=2e-2 * float(expected_ND.abs().max())):
                    return kind, eps, gain, bias
        raise ValueError(f"{type(norm).__name__}: the final norm is neither an RMS norm nor a layer norm")


def find_parts(model: nn.Module) -> Parts:
    """The parts of a stock model, or of one wrapped by PEFT.

    Raises:
        UnsupportedModelError: a part is missing; names near it are listed.
    """
    base = unwrap(model)
    if getattr(base.config, "model_type", None) in FAMILIES:
        found = find_adapter(base)
        decoder, blocks, norm, head = found.decoder, found.blocks, found.final_norm, found.lm_head
    else:
        decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
        blocks, norm = _child(decoder, BLOCKS, nn.ModuleList), _child(decoder, NORMS, nn.Module)
        head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        if head is None:
            raise UnsupportedModelError(f"{type(base).__name__} has no output embeddings; give a model with an LM head")
    return Parts(base, decoder, blocks, norm, head, getattr(base.config, "image_token_id", None))


def _child(module: nn.Module, names: Sequence[str], kind: type[nn.Module]) -> nn.Module:
    for name in names:
        if isinstance(found := getattr(module, name, None), kind):
            return found
    children = [name for name, _ in module.named_children()]
    near = difflib.get_close_matches(names[0], children, n=3, cutoff=0.3) or children[:5]
    raise UnsupportedModelError(
        f"{type(module).__name__} has none of {', '.join(names)}; near names: {', '.join(near) or 'none'}"
    )
