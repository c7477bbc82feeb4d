"""Open images safely: paths that stay below the image root, sizes checked before decoding, always upright RGB."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_FOREIGN = re.compile(r"(?:[a-z][a-z0-9+.-]*://|(?:data|file|[a-z]):)", re.IGNORECASE)
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_relative(path: str) -> None:
    """Refuse (ValueError) a path that cannot be one below an image root, whatever is on the disk."""
    if _FOREIGN.match(path):
        raise ValueError(f"image path {path!r} is a URL or names a drive; download the file and write a relative path")
    if path.startswith(("/", "\\", "~")):
        raise ValueError(f"image path {path!r} is absolute; write it relative to the image root")
    if "\\" in path or "\0" in path:
        raise ValueError(f"image path {path!r} has a backslash or NUL in it; write it with forward slashes")
    if not path or ".." in path.split("/"):
        raise ValueError(f"image path {path!r} is empty or climbs out of its folder; write it below the image root")


def resolve_image(root: Path | str, relative: str) -> Path:
    """The file `relative` names below `root`.

    Raises:
        ValueError: a URL, an absolute, drive or network path, one with "..", a link that leaves the root, or a thing
            that is not a file.
        FileNotFoundError: the root or the file does not exist.
    """
    root, path = Path(root), str(relative)
    check_relative(path)
    if not root.is_dir():
        raise FileNotFoundError(f"image root {root} is not a folder; set data.image_root (or --images) to one")
    inside = root.resolve()
    found = (inside / path).resolve()
    if not found.is_relative_to(inside):
        raise ValueError(f"image path {path!r} is a link that leaves the image root {root}; set the root to its target")
    if not found.exists():
        raise FileNotFoundError(f"image {path!r} is not in {root}; check the image root or remove the record")
    if not found.is_file():
        raise ValueError(f"image path {path!r} in {root} is not a file")
    return found


def check_header(path: Path | str, *, max_pixels: int = 64_000_000, max_aspect_ratio: float = 200.0) -> None:
    """Raise what `load_image` would for format and size, without decoding pixels; a cut file passes."""
    path = Path(path)
    with path.open("rb") as file:
        _open(path, file, max_pixels, max_aspect_ratio)


def load_image(path: Path | str, *, max_pixels: int = 64_000_000, max_aspect_ratio: float = 200.0) -> Image.Image:
    """Decode one image as upright RGB.

    Width and height are read from the header and checked before any pixel is decoded. `max_aspect_ratio` (long side
    over short side) guards resizing to a fixed short side, which would turn a 1 x 60000 strip into gigabytes. The
    EXIF orientation is applied, an animation gives its first frame, transparency is laid over white and 16-bit grey
    is scaled to 8 bits.

    Raises:
        ValueError: not an image of a common format, truncated, too large or too narrow; names the file.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        return _load(path, file, max_pixels, max_aspect_ratio)


def decode_image(
    data: bytes, name: str, *, max_pixels: int = 64_000_000, max_aspect_ratio: float = 200.0
) -> Image.Image:
    """`load_image` for the bytes of an image file; name: what errors call it."""
    return _load(name, io.BytesIO(data), max_pixels, max_aspect_ratio)


def _load(path: Path | str, file, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    image = _open(path, file, max_pixels, max_aspect_ratio)
    try:
        image.load()
    except _UNREADABLE as error:
        raise ValueError(f"{path}: truncated or damaged image ({error}); replace the file") from error
    return _to_rgb(_upright(image))


def _open(path: Path | str, file, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    """The image with its header read and its size accepted, pixels still undecoded."""
    try:
        image = Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: {error}; the limit is {max_pixels} pixels, make it smaller") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: {_first_bytes(file)}; expected one of {', '.join(_FORMATS)}") from error
    except _UNREADABLE as error:
        raise ValueError(f"{path}: damaged image header ({error}); replace the file") from error
    _check_size(path, image.size, max_pixels, max_aspect_ratio)
    return image


def _check_size(path: Path | str, size: tuple[int, int], max_pixels: int, max_aspect_ratio: float) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{path}: the image is {width} x {height}; replace the file")
    if width * height > max_pixels:
        raise ValueError(f"{path}: {width} x {height} pixels, the limit is {max_pixels}; make it smaller")
    if max(width, height) > max_aspect_ratio * min(width, height):
        raise ValueError(f"{path}: {width} x {height} is narrower than 1:{max_aspect_ratio:g}; crop it")


def _first_bytes(file) -> str:
    file.seek(0)
    start = file.read(64)
    if not start:
        return "the file is empty"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "holds a web page or XML and not an image (a failed download?)"
    return f"not an image of a known format (starts with {start[:12]!r})"


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF block asks; a damaged block means no turn."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _UNREADABLE:
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")
