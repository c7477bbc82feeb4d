"""How a state becomes words: LM head, final norm and vocabulary, kept beside the features so that no analysis loads
the model.

Shapes: V vocabulary, D hidden size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hacl.representations.manifest import read_json, write_bytes, write_json
from hacl.representations.tensor_files import TensorFile

READOUT, READOUT_TENSORS = "readout.json", "readout.safetensors"


@dataclass(frozen=True)
class Readout:
    """lm_head (V, D) and the final norm as float32, tokens: the text of each id (decoded alone, "" for unused ids).

    norm_kind: "rms" (x / rms(x) * weight), "layer" ((x - mean) / std * weight + bias) or "none"; eps: added to the
    second moment.
    """

    lm_head: np.ndarray
    norm_weight: np.ndarray | None
    norm_kind: str
    eps: float
    tokens: list[str]
    norm_bias: np.ndarray | None = None

    def norm(self, states: np.ndarray) -> np.ndarray:
        """The final norm of states (..., D)."""
        if self.norm_kind == "none":
            return states
        centred = states - states.mean(-1, keepdims=True) if self.norm_kind == "layer" else states
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        scaled = scaled if self.norm_weight is None else scaled * self.norm_weight
        return scaled if self.norm_bias is None else scaled + self.norm_bias

    def logits(self, states: np.ndarray, *, normed: bool = False) -> np.ndarray:
        """(..., V) of states (..., D); normed: they come from after the final norm."""
        return (states if normed else self.norm(states)) @ self.lm_head.T


def read_readout(folder: Path) -> Readout:
    """The readout of a store. Raises FileNotFoundError where none was saved, ValueError where a file is cut off."""
    info = read_json(folder / READOUT)
    one = functools.partial(_vector, folder / READOUT_TENSORS)
    return Readout(
        lm_head=TensorFile.open(folder / READOUT_TENSORS, "lm_head").read(slice(None)),
        norm_weight=one("norm_weight") if info["norm_weight"] else None,
        norm_kind=info["norm_kind"],
        eps=info["eps"],
        tokens=info["tokens"],
        norm_bias=one("norm_bias") if info["norm_bias"] else None,
    )


def _vector(path: Path, key: str) -> np.ndarray:
    return TensorFile.open(path, key).read(slice(None))[0]


def save_readout(folder: Path, parts, tokenizer) -> None:
    """Write the readout of a model (`hacl.representations.parts.Parts`) once; an existing one stays.

    A LoRA on the LM head is added in where it is switched on.

    Raises:
        ValueError: the final norm is none that a `Readout` can repeat.
    """
    from safetensors.torch import save

    if (folder / READOUT).is_file() and (folder / READOUT_TENSORS).is_file():
        return
    head_VD = parts.head_weight()
    kind, eps, weight_D, bias_D = parts.norm_kind()
    tensors = {"lm_head": head_VD.detach().cpu().contiguous()}
    for name, vector_D in (("norm_weight", weight_D), ("norm_bias", bias_D)):
        if vector_D is not None:
            tensors[name] = vector_D.detach().float().cpu()[None].contiguous()
    write_bytes(folder / READOUT_TENSORS, save(tensors))
    known = len(tokenizer)
    tokens = [tokenizer.decode([index]) if index < known else "" for index in range(len(head_VD))]
    content = {"norm_kind": kind, "eps": eps, "tokens": tokens}
    write_json(folder / READOUT, {**content, "norm_weight": weight_D is not None, "norm_bias": bias_D is not None})
