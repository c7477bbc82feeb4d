"""Embeddings of nouns and images for association diversity and CLIPScore: a table, or an open_clip model.

An embedder has a ``name`` that every report carries, ``text(words)`` and ``image(row)``. Figures of different embedders
are not comparable. torch and open_clip are imported when an open_clip model is opened, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.reading import load_json

WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


class Embedder(Protocol):
    """What the creative scorers ask of an embedder."""

    name: str

    def text(self, words: Sequence[str]) -> list[np.ndarray | None]:
        """One vector [D] per word or caption, None for a word it does not know."""

    def image(self, row: Mapping[str, Any]) -> np.ndarray | None:
        """The vector [D] of a row's image, None where it has none."""


def unit(vector: np.ndarray, what: str) -> np.ndarray:
    """The vector at length one.

    Raises:
        InputError: its length is zero or not finite.
    """
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise InputError(f"the embedding of {what} has length {length}; a direction is needed")
    return np.asarray(vector, dtype=np.float64) / length


class TableEmbedder:
    """Vectors from a JSON object ``{"name": ..., "words": {"dog": [...]}, "images": {"image id": [...]}}``.

    Raises:
        InputError: no words, or vectors of different sizes.
    """

    def __init__(self, table: Mapping[str, Any], source: str = "embedder table") -> None:
        words, images = table.get("words", {}), table.get("images", {})
        if not isinstance(words, Mapping) or not isinstance(images, Mapping) or not words:
            raise InputError(f'{source}: write {{"name": ..., "words": {{"dog": [...]}}, "images": {{...}}}}')
        self.name = f"table:{table.get('name', source)}"
        self.words = {word: np.asarray(vector, dtype=np.float64) for word, vector in words.items()}
        self.images = {key: np.asarray(vector, dtype=np.float64) for key, vector in images.items()}
        sizes = {vector.shape for vector in (*self.words.values(), *self.images.values())}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            raise InputError(f"{source}: vectors must be lists of one length, found {sorted(sizes)}")

    def text(self, words: Sequence[str]) -> list[np.ndarray | None]:
        return [self.words.get(word) for word in words]

    def image(self, row: Mapping[str, Any]) -> np.ndarray | None:
        return self.images.get(str(row.get("image_id")))


class OpenClipEmbedder:
    """Image and text towers of an open_clip model whose weights the user gives; nothing is downloaded.

    Args:
        model: folder in open_clip's own layout (``open_clip_config.json`` and weights), or an architecture's name.
        weights: file with the weights of a named architecture.
        images: folder below which rows name their ``image``.
        device: torch device.
        template: text around a word, for instance "A photo of {}.".

    Raises:
        FileNotFoundError: no such folder or weights.
        InputError: open_clip is not installed, or the architecture is unknown.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        weights: str | Path | None = None,
        images: str | Path | None = None,
        device: str = "cpu",
        template: str = "{}",
    ) -> None:
        folder, self.files = Path(model), []
        if folder.is_dir():
            self.files = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS]
            if not self.files:
                raise FileNotFoundError(f"{folder} holds no weights ({', '.join(WEIGHTS)})")
            source, pretrained = f"local-dir:{folder}", None
        elif weights is None:
            raise FileNotFoundError(f"{model} is not a folder; give one, or an architecture together with its weights")
        elif not Path(weights).is_file():
            raise FileNotFoundError(f"weights {weights}: no such file")
        else:
            source, pretrained, self.files = str(model), str(weights), [Path(weights)]
        try:
            import open_clip
        except ImportError as error:
            raise InputError("this needs open_clip: pip install open_clip_torch") from error
        if pretrained and source not in open_clip.list_models():
            raise InputError(f"open_clip has no architecture {source!r}; give one of open_clip.list_models()")
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            source, pretrained=pretrained, device=device
        )
        self.model.eval()
        self.tokenize = open_clip.get_tokenizer(source)
        self.images = None if images is None else Path(images)
        self.device, self.template = device, template
        self.name = f"open_clip:{folder.name}"
        self._last: tuple[str, np.ndarray] | None = None

    def text(self, words: Sequence[str]) -> list[np.ndarray]:
        import torch

        if not words:
            return []
        tokens = self.tokenize([self.template.format(word) for word in words]).to(self.device)
        with torch.inference_mode():
            return list(self.model.encode_text(tokens).float().cpu().numpy())

    def image(self, row: Mapping[str, Any]) -> np.ndarray | None:
        import torch

        from hacl.data.images import load_image, resolve_image

        name = row.get("image")
        if name is None or self.images is None:
            return None
        if self._last is None or self._last[0] != name:  # captions of one image tend to follow each other
            pixels = self.preprocess(load_image(resolve_image(self.images, name))).unsqueeze(0).to(self.device)
            with torch.inference_mode():
                self._last = name, self.model.encode_image(pixels).float().cpu().numpy()[0]
        return self._last[1]


def open_embedder(choice: Any, *, images: Any = None, device: str = "cpu") -> tuple[Embedder | None, list[Path]]:
    """The embedder and the files it was read from.

    Args:
        choice: None, ``"table:FILE"``, ``"open_clip:FOLDER"``, a mapping in the form of the table, or an object with
            ``name``, ``text`` and ``image``.

    Raises:
        InputError: anything else. FileNotFoundError: no such file or folder.
    """
    if choice is None:
        return None, []
    if isinstance(choice, Mapping):
        return TableEmbedder(choice), []
    if not isinstance(choice, str):
        if all(hasattr(choice, part) for part in ("name", "text", "image")):
            return choice, []
        raise InputError(f"embedder {type(choice).__name__}: it needs `name`, `text(words)` and `image(row)`")
    kind, _, argument = choice.partition(":")
    if kind == "table" and argument:
        return TableEmbedder(load_json(argument), argument), [Path(argument)]
    if kind == "open_clip" and argument:
        embedder = OpenClipEmbedder(argument, images=images, device=device, template="A photo of {}.")
        return embedder, embedder.files
    raise InputError(f"embedder {choice!r}: use table:FILE or open_clip:FOLDER")
