"""Load images named by data: paths stay under their root, size is checked before pixels are decoded.

Errors name the file and the fix; nothing is fetched from a network.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
MAX_ASPECT = 200


def resolve_image(root: str | os.PathLike, relative: str) -> Path:
    """The file `relative` under `root`.

    Refuses URLs, absolute and UNC paths, `..` and links that lead out of the root with ValueError; a missing file is
    a FileNotFoundError.
    """
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", relative):
        raise ValueError(f"image {relative!r} is a URL or names a drive; give a path relative to the image root")
    if relative.startswith(("/", "\\")) or ".." in re.split(r"[\\/]", relative) or "\0" in relative:
        raise ValueError(f"image {relative!r} leads out of the image root {root}; give a path below it")
    base = Path(root).resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise ValueError(f"image {relative!r} is a link out of the image root {root}")
    if not path.is_file():
        raise FileNotFoundError(f"image {relative!r} not found under {root}")
    return path


def load_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to RGB, upright by its EXIF orientation; of an animation the first frame.

    Raises ValueError naming the file when it is no image, is damaged, or by its header has more than `max_pixels`
    pixels or an aspect ratio above 200.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(f"{path}: {width} x {height} pixels is above the limit of {max_pixels}")
                if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
                    raise ValueError(f"{path}: {width} x {height} is narrower than 1:{MAX_ASPECT}")
                image.load()
                upright = ImageOps.exif_transpose(image)
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    rgba = upright.convert("RGBA")
                    flat = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                    return Image.alpha_composite(flat, rgba).convert("RGB")
                return upright.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that can be read; check what the file really holds") from None
    except (OSError, SyntaxError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: damaged image ({error})") from None
