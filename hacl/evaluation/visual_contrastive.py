"""Visual contrastive decoding: each token is chosen by what the image adds over a noised copy of itself.

Definition: Leng et al., arXiv 2311.16922 (CVPR 2024); order of operations and noise schedule as in their code
(DAMO-NLP-SG/VCD@d6568ff). A logits processor of stock `generate`, with a second stream of its own: two decoder calls
per token. Each stream keeps its own cache; before that commit theirs shared one, so that only a reply's first token was
contrasted (issue 13 there).

Shapes: R rows, I images, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor

from hacl.evaluation.runner.decoding import NOISE_STEPS, VisualContrast
from hacl.models.adapters import unwrap


def noise_scales(step: int) -> tuple[float, float]:
    """(scale of the image, scale of the noise) after diffusion step `step` of 0 to 999; their squares add up to 1.

    The variance added by step t is a sigmoid from 1e-5 to 5e-3; what is left of the image is the product over steps.
    """
    times = torch.linspace(-6, 6, NOISE_STEPS, dtype=torch.float64)
    added = 1e-5 + (5e-3 - 1e-5) * times.sigmoid()
    kept = float((1 - added).log().cumsum(0)[step].exp())
    return math.sqrt(kept), math.sqrt(1 - kept)


def distort(pixels_I: Tensor, step: int, seed: int = 0) -> Tensor:
    """Images (I, ...), as the processor made them, with noise of diffusion step `step`.

    The noise of an image comes from the seed and its own pixels, so it is the same in any batch, for any question.
    """
    image, noise = noise_scales(step)
    noised = [image * pixels + noise * _noise_like(pixels, seed).to(pixels) for pixels in pixels_I]
    return torch.stack(noised)


def contrast(scores_RV: Tensor, distorted_RV: Tensor, alpha: float, beta: float) -> Tensor:
    """(1 + alpha) l(v) - alpha l(v') where p(v) >= beta max p(v), and -inf elsewhere.

    scores_RV: logits with the image; distorted_RV: with the noised one. alpha = beta = 0 gives scores_RV, bit for bit.
    """
    contrasted_RV = (1 + alpha) * scores_RV - alpha * distorted_RV
    cutoff_R1 = scores_RV.amax(-1, keepdim=True) + (math.log(beta) if beta else -math.inf)
    return contrasted_RV.masked_fill(scores_RV < cutoff_R1, -math.inf)


class VisualContrastProcessor(LogitsProcessor):
    """Contrasts the scores of one call of `generate` with those of the same text after noised images.

    inputs: all that `generate` is called with, its images distorted (`distorted`). One processor serves one call.
    """

    def __init__(self, model: nn.Module, settings: VisualContrast, inputs: Mapping[str, Tensor]):
        self.model, self.settings = unwrap(model), settings
        self.inputs = {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}
        self.mask_RT = inputs["attention_mask"]
        self.own_positions = "image_grid_thw" in inputs  # in time, height and width, from the grid
        takes = inspect.signature(self.model.forward).parameters["pixel_values"]
        self.needs_pixels = takes.default is inspect.Parameter.empty  # in every forward, as the Q-Former models'
        self.cache: DynamicCache | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (R, V) of the next token after input_ids (R, T); T grows by one from call to call."""
        distorted_RV = self._next_logits(input_ids).to(scores)
        return contrast(scores, distorted_RV, self.settings.alpha, self.settings.beta)

    def _next_logits(self, ids_RT: Tensor) -> Tensor:
        new = ids_RT.shape[1] - self.mask_RT.shape[1]
        first = self.cache is None
        if new != (0 if first else 1):
            raise ValueError(f"{new} new tokens in one step: visual contrastive decoding needs one, without beams")
        self.mask_RT = torch.cat([self.mask_RT, self.mask_RT.new_ones(len(ids_RT), new)], dim=1)
        if first:
            self.cache = DynamicCache(config=self.model.config.get_text_config())
        stream = self.model.language_model if self.needs_pixels and not first else self.model
        output = stream(
            input_ids=ids_RT if first else ids_RT[:, -1:],
            attention_mask=self.mask_RT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self._positions(first),
            **(self.inputs if first else {}),
        )
        return output.logits[:, -1].float()

    def _positions(self, first: bool) -> dict[str, Tensor]:
        """Those of the new tokens; none where the model makes them from the images."""
        positions_RT = (self.mask_RT.cumsum(-1) - 1).clamp_min(0)
        if not self.own_positions:
            return {"position_ids": positions_RT if first else positions_RT[:, -1:]}
        if first:
            return {}
        after_R1 = positions_RT[:, -1:] + self.model.model.rope_deltas.to(positions_RT)
        return {"position_ids": after_R1.expand(3, -1, -1)}


def distorted(image: Mapping[str, Tensor], step: int, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of one image, as `ImageText.tensors` gives them, with noise of diffusion step `step`.

    The noise comes from the seed and the image. What pads an image (`pixel_attention_mask`) stays as it is.
    """
    found = dict(image)
    for name in ("pixel_values", "high_res_pixel_values"):
        if name in image:
            found[name] = distort(image[name][None], step, seed)[0]
    if "pixel_attention_mask" in image:
        seen = image["pixel_attention_mask"].bool().unsqueeze(-3)
        found["pixel_values"] = torch.where(seen, found["pixel_values"], image["pixel_values"])
    return found


def _noise_like(pixels: Tensor, seed: int) -> Tensor:
    """Standard normal noise of an image's shape, from the seed and the image."""
    content = pixels.detach().float().cpu().contiguous().numpy().tobytes()
    digest = hashlib.blake2b(f"{seed}/".encode() + content, digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(pixels.shape, generator=generator)
