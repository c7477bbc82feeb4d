"""Open images safely: paths that stay below the image root, sizes checked before decoding, always upright RGB."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

MAX_BYTES = 512 * 2**20  # 64 million pixels of 8 bytes
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

_SIDEWAYS = tuple(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))


class DamagedImage(ValueError):
    """Content that is no readable image; the message names the file."""


class RefusedImage(ValueError):
    """A path or an image that is not opened: outside the image root, too large, too narrow."""


def check_relative(path: str) -> None:
    """Refuse (RefusedImage) a path that cannot be one below an image root, whatever is on the disk."""
    if _FOREIGN.match(path):
        raise RefusedImage(f"image path {_shown(path)} is a URL or names a drive; download it, write a relative path")
    if path.startswith(("/", "\\", "~")):
        raise RefusedImage(f"image path {_shown(path)} is absolute; write it relative to the image root")
    if "\\" in path or "\0" in path:
        raise RefusedImage(f"image path {_shown(path)} has a backslash or NUL in it; write it with forward slashes")
    if not path or ".." in path.split("/"):
        raise RefusedImage(f"image path {_shown(path)} is empty or climbs out of its folder; write one below the root")


def resolve_image(root: Path | str, relative: str) -> Path:
    """The file `relative` names below `root`.

    Raises:
        RefusedImage: a URL, an absolute, drive or network path, one with "..", a link that leaves the root, or a thing
            that is not a file.
        FileNotFoundError: the root or the file does not exist.
    """
    root, path = Path(root), str(relative)
    check_relative(path)
    if not root.is_dir():
        raise FileNotFoundError(f"image root {root} is not a folder; set data.image_root (or --images) to one")
    try:
        inside = root.resolve()
        found = (inside / path).resolve()
        exists, is_file = found.exists(), found.is_file()
    except (RuntimeError, ValueError, OSError) as error:  # links in a circle; a name that no file can have
        if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise RefusedImage(f"image path {_shown(path)} leads to no file in {root} ({error}); mend it") from error
    if not found.is_relative_to(inside):
        raise RefusedImage(
            f"image path {_shown(path)} is a link that leaves the image root {root}; set the root to its target"
        )
    if not exists:
        raise FileNotFoundError(f"image {_shown(path)} is not in {root}; check the image root or remove the record")
    if not is_file:
        raise RefusedImage(f"image path {_shown(path)} in {root} is not a file")
    return found


def check_header(path: Path | str, *, max_pixels: int = 64_000_000, max_aspect_ratio: float = 200.0) -> None:
    """Raise what `load_image` would for format and size, without decoding pixels; a cut file passes."""
    with _open_file(Path(path)) as file:
        _open(path, file, max_pixels, max_aspect_ratio)


def load_image(path: Path | str, *, max_pixels: int = 64_000_000, max_aspect_ratio: float = 200.0) -> Image.Image:
    """Decode one image as upright RGB.

    Width and height are read from the header and checked before any pixel is decoded. `max_aspect_ratio` (long side
    over short side) guards resizing to a fixed short side, which would turn a 1 x 60000 strip into gigabytes. The
    EXIF orientation is applied, an animation gives its first frame, transparency is laid over white and 16-bit grey
    is scaled to 8 bits.

    Raises:
        DamagedImage: not an image of a common format, or truncated; names the file.
        RefusedImage: too large, too narrow, or a pipe or device.
        FileNotFoundError: no such file.
        OSError: the file could not be read, which says nothing about the image.
    """
    with _open_file(Path(path)) as file:
        return _load(path, file, max_pixels, max_aspect_ratio)


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) of what `load_image` would return, from the header alone. Raises as `check_header` does."""
    with _open_file(Path(path)) as file:
        image = _open(path, file, 64_000_000, 200.0)
        width, height = image.size
        return (height, width) if _turn(image) in _SIDEWAYS else (width, height)


def decode_image(
    data: bytes, name: str, *, max_pixels: int = 64_000_000, max_aspect_ratio: float = 200.0
) -> Image.Image:
    """`load_image` for the bytes of an image file; name: what errors call it."""
    return _load(name, io.BytesIO(data), max_pixels, max_aspect_ratio)


def _open_file(path: Path) -> BinaryIO:
    """The file opened for reading, if it is a plain one of at most `MAX_BYTES`; a pipe does not block."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= MAX_BYTES:
        return file
    file.close()
    if not stat.S_ISREG(facts.st_mode):
        raise RefusedImage(f"{path}: a folder, pipe or device and no plain file")
    raise RefusedImage(f"{path}: {facts.st_size:,} bytes, the limit is {MAX_BYTES:,}; save it smaller")


def _load(path: Path | str, file: BinaryIO, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    image = _open(path, file, max_pixels, max_aspect_ratio)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except _UNREADABLE as error:
        _raise_if_machine(path, error)
        raise DamagedImage(f"{path}: truncated or damaged image ({error}); replace the file") from error


def _open(path: Path | str, file: BinaryIO, max_pixels: int, max_aspect_ratio: float) -> Image.Image:
    """The image with its header read and its size accepted, pixels still undecoded."""
    try:
        image = Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RefusedImage(f"{path}: {error}; the limit is {max_pixels} pixels, make it smaller") from error
    except UnidentifiedImageError as error:
        raise DamagedImage(f"{path}: {_first_bytes(file)}; expected one of {', '.join(_FORMATS)}") from error
    except _UNREADABLE as error:
        _raise_if_machine(path, error)
        raise DamagedImage(f"{path}: damaged image header ({error}); replace the file") from error
    _check_size(path, image.size, max_pixels, max_aspect_ratio)
    return image


def _raise_if_machine(path: Path | str, error: BaseException) -> None:
    """Pass on an error of the operating system, which Pillow's own OSErrors are not."""
    if isinstance(error, OSError) and error.errno is not None:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error


def _check_size(path: Path | str, size: tuple[int, int], max_pixels: int, max_aspect_ratio: float) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DamagedImage(f"{path}: the image is {width} x {height}; replace the file")
    if width * height > max_pixels:
        raise RefusedImage(f"{path}: {width} x {height} pixels, the limit is {max_pixels}; make it smaller")
    if max(width, height) > max_aspect_ratio * min(width, height):
        raise RefusedImage(f"{path}: {width} x {height} is narrower than 1:{max_aspect_ratio:g}; crop it")


def _shown(path: str) -> str:
    return repr(path) if len(path) <= 300 else repr(path[:300]) + "..."


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
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _UNREADABLE:
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")
