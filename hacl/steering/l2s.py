"""Learn-to-Steer: a small network that predicts the steering vectors of a prompt from one of its states.

g(x) = W2 act(W1 x + b1), added as h + alpha * g(x) (Parekh et al., NeurIPS 2025, arXiv 2508.12815). With no hidden
layer the same steerer is an affine map, the closed-form baseline that the network must beat.

Shapes: B samples, C context width, K hidden units, L steered layers, D hidden size, O = L * D outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hacl.steering.layers import LayerKey
from hacl.steering.steerer import ContextSpec, Steerer

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
INPUT_NORMS = ("none", "standardise")


class SteeringNet(nn.Module):
    """(B, inputs) -> (B, outputs), in fp32.

    depth: hidden layers of `hidden` units each, 0 for an affine map; out_bias: whether the last layer has a bias (the
    paper's has none); input_norm: "standardise" takes off the mean and divides by the deviation of each coordinate over
    the contexts it was trained on, which `set_statistics` stores in the network's state.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        act: str = "tanh",
        out_bias: bool = False,
        depth: int = 1,
        input_norm: str = "none",
    ):
        super().__init__()
        if act not in ACTIVATIONS or input_norm not in INPUT_NORMS:
            raise ValueError(
                f"act={act!r}, input_norm={input_norm!r}: activations are {', '.join(ACTIVATIONS)}; input norms "
                f"{', '.join(INPUT_NORMS)}"
            )
        if min(inputs, hidden, outputs) < 1 or depth < 0:
            raise ValueError(f"inputs={inputs}, hidden={hidden}, outputs={outputs}, depth={depth}: expected positive")
        self.sizes = {"inputs": inputs, "hidden": hidden, "outputs": outputs, "depth": depth}
        self.options = {"act": act, "out_bias": out_bias, "input_norm": input_norm}
        widths = [inputs, *[hidden] * depth]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.outer = nn.Linear(widths[-1], outputs, bias=out_bias)
        self.act = ACTIVATIONS[act]()
        if input_norm == "standardise":
            self.register_buffer("mean", torch.zeros(inputs))
            self.register_buffer("deviation", torch.ones(inputs))

    def set_statistics(self, contexts_BC: Tensor) -> None:
        """Take the statistics of the training contexts; nothing to do for input_norm "none"."""
        if self.options["input_norm"] == "standardise":
            deviation = contexts_BC.float().std(0, correction=0)
            self.mean.copy_(contexts_BC.float().mean(0))
            self.deviation.copy_(torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation)))

    def features(self, contexts_BC: Tensor) -> Tensor:
        """What the last layer reads: (B, hidden), or the (normalised) contexts of an affine map."""
        x = contexts_BC.float()
        if self.options["input_norm"] == "standardise":
            x = (x - self.mean) / self.deviation
        for layer in self.inner:
            x = self.act(layer(x))
        return x

    def forward(self, contexts_BC: Tensor) -> Tensor:
        return self.outer(self.features(contexts_BC))


class L2SSteerer(Steerer):
    """Vectors of one or several layers, predicted from a state of the unsteered prompt.

    net: maps the state that `read` names to the vectors of `layers`, one after another in its outputs.

    Raises:
        ValueError: no layer, or outputs that cannot be split evenly among the layers.
    """

    kind = "l2s"

    def __init__(self, net: SteeringNet, *, read: ContextSpec, layers: Sequence[LayerKey], **common: Any):
        super().__init__(**common)
        outputs = net.sizes["outputs"]
        if not layers or outputs % len(layers):
            raise ValueError(f"a network with {outputs} outputs cannot serve the layers {list(layers)}")
        if not all(torch.isfinite(value).all() for value in net.state_dict().values()):
            raise ValueError("the network has weights that are not finite")
        self.net = copy.deepcopy(net).cpu().eval().requires_grad_(False)
        self.read, self._layers = read, tuple(layers)
        self._placed: dict[torch.device, SteeringNet] = {}

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return self._layers

    def required_context(self) -> list[ContextSpec]:
        return [self.read]

    def width_of(self, layer: LayerKey | None) -> int | None:
        return self.net.sizes["outputs"] // len(self._layers)

    def vectors(
        self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None
    ) -> Mapping[LayerKey | None, Tensor]:
        contexts_BC = context[self.read]
        if contexts_BC.shape[-1] != self.net.sizes["inputs"]:
            raise ValueError(
                f"the network reads states of width {self.net.sizes['inputs']}, layer {self.read.layer!r} has "
                f"{contexts_BC.shape[-1]}; it belongs to another model"
            )
        with torch.no_grad():
            vectors_BLD = self._on(contexts_BC.device)(contexts_BC).unflatten(-1, (len(self._layers), -1))
        return {layer: vectors_BLD[:, index] for index, layer in enumerate(self._layers)}

    def _on(self, device: torch.device) -> SteeringNet:
        if device not in self._placed:
            self._placed[device] = copy.deepcopy(self.net).to(device)
        return self._placed[device]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.net.state_dict())

    def settings(self) -> dict[str, Any]:
        return {
            "net": {**self.net.sizes, **self.net.options},
            "read": {"layer": self.read.layer, "token": self.read.token},
            "layers": list(self._layers),
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> L2SSteerer:
        with torch.random.fork_rng(devices=[]):
            net = SteeringNet(**settings["net"])
        net.load_state_dict(dict(tensors))
        return cls(net, read=ContextSpec(**settings["read"]), layers=settings["layers"], **common)
