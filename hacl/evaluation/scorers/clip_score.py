"""CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv 2104.08718) with an open_clip model that the user gives.

CLIPScore = 2.5 * max(cos(image, caption), 0), the caption after "A photo depicts". RefCLIPScore is its harmonic mean
with max(largest cos(caption, reference), 0). Figures of different models are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, divide, listed
from hacl.evaluation.scorers.creative_embedders import Embedder, OpenClipEmbedder, open_embedder, unit
from hacl.evaluation.scorers.reading import is_path, iter_rows, require

WEIGHT = 2.5
TEMPLATE = "A photo depicts {}"


def clip_score(image_cosine: float) -> float:
    """2.5 * max(cosine, 0)."""
    return WEIGHT * max(image_cosine, 0.0)


def ref_clip_score(image_cosine: float, reference_cosines: Sequence[float]) -> float:
    """Harmonic mean of CLIPScore and the largest cosine to a reference caption, 0 if either is 0."""
    score, nearest = clip_score(image_cosine), max(*reference_cosines, 0.0)
    return 2 * score * nearest / (score + nearest) if score and nearest else 0.0


class ClipScorer(Scorer):
    """Rows ``image_id``, ``caption``, and ``image`` (a path below ``images``); optionally ``references``, a list of
    captions. Several captions of one image are legal.

    metrics ``clip_score`` (0 to 2.5), and ``ref_clip_score`` (over the rows with references, absent if none has any).
    Items: ``image_id``, ``clip_score``, ``ref_clip_score``.

    Args:
        references: optional rows (or their path) with ``image_id`` and ``captions``; images without a prediction are
            then noticed.
        options: from Python, ``model`` may be an object with ``name``, ``text`` and ``image``.
    """

    benchmark: ClassVar[str] = "clip_score"
    version: ClassVar[int] = 1
    needs_references: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option("model", "folder of an open_clip model, or the name of an architecture"),
        Option("weights", "file with the weights of a named architecture"),
        Option("images", "folder of the images"),
        Option("device", "torch device", "cpu"),
    )

    def __init__(self, references: Any = None, **options: Any) -> None:
        super().__init__(references, **options)
        self._files = [Path(references)] if is_path(references) else []
        self.captions = None if references is None else _captions(references)
        self.embedder = self._open()
        self.answered: set[str] = set()
        self.scores: list[float] = []
        self.ref_scores: list[float] = []
        self.sums = ImageSums(("clip_score", "ref_clip_score"))

    def _open(self) -> Embedder:
        settings = self.settings
        model = settings["model"]
        if model is not None and not is_path(model):
            return open_embedder(model)[0]
        if model is None:
            raise ValueError(
                "clip_score needs --model: a folder with an open_clip model, or --model NAME --weights FILE"
            )
        if settings["images"] is None:
            raise ValueError("clip_score needs --images: the folder that the predictions' `image` paths are in")
        embedder = OpenClipEmbedder(
            model, weights=settings["weights"], images=settings["images"], device=settings["device"]
        )
        self._files += embedder.files
        return embedder

    def input_files(self) -> list[Path]:
        return self._files

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        image_id, caption = require(row, "image_id", where, (str, int)), require(row, "caption", where)
        key = str(image_id)
        references = row.get("references")
        if references is None and self.captions is not None:
            if key not in self.captions:
                raise InputError(f"{where}: image {image_id!r} is not in the references")
            references = self.captions[key]
        references = _texts(references, where) if references is not None else []
        image = self.embedder.image(row)
        if image is None:
            raise InputError(f"{where}: image {image_id!r} cannot be found; give its path in `image`, and --images")
        self.answered.add(key)
        texts = self.embedder.text([TEMPLATE.format(text) for text in (caption, *references)])
        if any(text is None for text in texts):
            raise InputError(f"{where}: {self.embedder.name} has no embedding for a caption of image {image_id!r}")
        said, *others = (unit(text, f"a caption of image {image_id!r}") for text in texts)
        cosine = float(said @ unit(image, f"image {image_id!r}"))
        item: dict[str, Any] = {"image_id": key, "clip_score": clip_score(cosine), "ref_clip_score": None}
        self.scores.append(item["clip_score"])
        self.sums.add(key, "clip_score", item["clip_score"], 1)
        if others:
            item["ref_clip_score"] = ref_clip_score(cosine, [float(said @ other) for other in others])
            self.ref_scores.append(item["ref_clip_score"])
            self.sums.add(key, "ref_clip_score", item["ref_clip_score"], 1)
        return item

    def finish(self, *, allow_missing: bool = False) -> Totals:
        warnings = [f"CLIPScore by {self.embedder.name}; compare only with the same model"]
        missing = [key for key in self.captions or () if key not in self.answered]
        if missing:
            message = f"{len(missing)} of {len(self.captions or ())} images have no caption: {listed(missing)}"
            if not allow_missing:
                raise InputError(f"{message}; caption them, or pass --allow-missing")
            warnings.append(message)
        metrics = {"clip_score": divide(sum(self.scores), len(self.scores), "clip_score", warnings)}
        if self.ref_scores:
            metrics["ref_clip_score"] = sum(self.ref_scores) / len(self.ref_scores)
        counts = {"captions": len(self.scores), "with_references": len(self.ref_scores), "missing": len(missing)}
        return Totals(metrics=metrics, counts=counts, warnings=warnings, sums=self.sums)


def _captions(source: Any) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for where, row in iter_rows(source, "reference"):
        key = str(require(row, "image_id", where, (str, int)))
        if key in captions:
            raise InputError(f"{where}: image {key!r} comes twice; put its captions in one row")
        captions[key] = _texts(require(row, "captions", where, list), where)
    return captions


def _texts(value: Any, where: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: references must be a list of captions, at least one")
    return value
