"""What identifies an image besides its path: size, hash of the file's bytes, and a perceptual hash of what it shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hacl.data.images import load_image, resolve_image

NEAR_BITS = 3
_BANDS = 4


@dataclass(frozen=True)
class ImageFacts:
    """error: why it cannot be used, "" if it can; sha256: first 64 bits of the file's hash; look: see `look_of`."""

    path: str
    error: str = ""
    width: int = 0
    height: int = 0
    sha256: int = 0
    look: int = 0


def image_facts(root: Path, path: str) -> ImageFacts:
    """Read and decode one image below `root`."""
    try:
        file = resolve_image(root, path)
        with load_image(file) as image, file.open("rb") as bytes_:
            digest = hashlib.file_digest(bytes_, "sha256").digest()
            return ImageFacts(path, "", *image.size, int.from_bytes(digest[:8], "big") or 1, look_of(image))
    except (ValueError, OSError) as error:
        return ImageFacts(path, str(error))


def look_of(image: Image.Image) -> int:
    """64-bit difference hash: in an 8 x 9 grey thumbnail, whether each cell is brighter than its right neighbour.

    Unchanged by size and compression up to a few bits; 0 for an image without structure, which looks like any other.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (grey[9 * row + column] > grey[9 * row + column + 1])
    return bits


class Looks:
    """Finds the images that look like a given one: at most `NEAR_BITS` bits apart. Holds a small (validation) set.

    Two hashes that differ in fewer bits than there are bands agree in one band, so only such are compared.
    """

    def __init__(self) -> None:
        self._bands: list[dict[int, list[tuple[int, str]]]] = [{} for _ in range(_BANDS)]

    def add(self, look: int, path: str) -> None:
        for band, key in enumerate(_keys(look)):
            self._bands[band].setdefault(key, []).append((look, path))

    def near(self, look: int) -> str | None:
        """The path of one such image."""
        if look == 0:
            return None
        for band, key in enumerate(_keys(look)):
            for other, path in self._bands[band].get(key, ()):
                if (look ^ other).bit_count() <= NEAR_BITS:
                    return path
        return None


def _keys(look: int) -> list[int]:
    width = 64 // _BANDS
    return [look >> (band * width) & ((1 << width) - 1) for band in range(_BANDS)]
