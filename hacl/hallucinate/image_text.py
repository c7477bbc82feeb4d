"""Drop candidates that an image-text model finds at least as true of the photograph as the caption they come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hacl.data.images import load_image, resolve_image
from hacl.data.records import HallucinatedCaption, Record

REASON = "supported by the image"


class ImageTextFilter:
    """model: folder of an open_clip model, or the name of an architecture, then `weights` is its file; nothing is
    downloaded; image_root: where records' images are; margin: how much lower than the caption's cosine a candidate's
    must be. Raises ValueError and FileNotFoundError for what is missing.

    Scores are those of one caption's candidates at a time, so no other caption changes them.
    """

    def __init__(self, model: str, *, image_root: str | None, weights: str | None = None, margin: float = 0.0):
        if not image_root:
            raise ValueError("image_text needs image_root, the folder that image paths start from")
        if not Path(model).is_dir() and not (weights and Path(weights).is_file()):
            raise FileNotFoundError(
                f"image_text={model}: no such folder; for the name of an open_clip architecture give its weights file "
                "too (image_text_weights)"
            )
        self.model, self.weights, self.image_root, self.margin = model, weights, Path(image_root), margin

    def settings(self) -> dict[str, Any]:
        return {"image_text": Path(self.model).name, "image_text_margin": self.margin}

    @cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        import open_clip

        if Path(self.model).is_dir():
            name, source = f"local-dir:{self.model}", {}
        else:
            name, source = self.model, {"pretrained": self.weights}
        model, _, preprocess = open_clip.create_model_and_transforms(name, **source)
        return model.eval(), preprocess, open_clip.get_tokenizer(name)

    def keep(
        self, record: Record, caption: str, made: Sequence[HallucinatedCaption]
    ) -> tuple[list[HallucinatedCaption], int]:
        """Those that the image supports less than the caption, and how many it does not. All, without an image."""
        if not record.images or not made:
            return list(made), 0
        import torch

        model, preprocess, tokenize = self._parts
        picture = preprocess(load_image(resolve_image(self.image_root, record.images[0])))[None]
        with torch.inference_mode():
            image = torch.nn.functional.normalize(model.encode_image(picture), dim=-1)
            texts = model.encode_text(tokenize([caption, *(one.text for one in made)]))
            cosines = (torch.nn.functional.normalize(texts, dim=-1) @ image[0]).tolist()
        most = cosines[0] - self.margin
        kept = [one for one, cosine in zip(made, cosines[1:], strict=True) if cosine < most]
        return kept, len(made) - len(kept)
