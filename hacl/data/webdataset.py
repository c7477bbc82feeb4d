"""Records with their images in webdataset shards: tar files whose members KEY.jpg, KEY.txt and KEY.json are one sample.

Shards are foreign data: members must be plain files of a sane size under relative names, images are checked by their
header before they are kept, and nothing is written outside the image folder.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from hacl.data.images import check_header, check_relative, resolve_image
from hacl.data.json_text import parse_line
from hacl.data.records import Record, RecordError, parse_record, record_to_json

MAX_MEMBER_BYTES = 64 * 2**20
MAX_SAMPLE_BYTES = 4 * MAX_MEMBER_BYTES
_MAX_HEADER_BYTES = 2**14  # of an extended header: a long name
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_TEXTS = ("txt", "caption")
_NAMELESS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
_DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error, lzma.LZMAError)


def read_shards(shards: Iterable[Path], images: Path | None = None) -> Iterator[Record]:
    """The records of shards, in order, one sample in memory at a time.

    A sample's JSON may be a record of ours or img2dataset's; without captions there its text is the caption. Its image
    is named as the JSON says (ours), else SHARD/KEY.ext. images: folder to extract the images to; without it they
    stay in the shards. Raises RecordError naming shard and member.
    """
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such shard")
        try:
            for key, group in groupby(_members(shard), key=lambda member: member[0]):
                yield sample_record(shard, key, [(ending, data) for _, ending, data in group], images)
        except RecordError:
            raise
        except _DAMAGED as error:
            raise RecordError(f"{shard}: not a complete tar file ({error}); download it again") from error


def _members(shard: Path) -> Iterator[tuple[str, str, bytes]]:
    """(key, ending, content) of every file."""
    with tarfile.open(shard, "r|*", tarinfo=_Header) as tar:
        for key, ending, member in _files(shard, tar):
            yield key, ending, tar.extractfile(member).read()


def place_members(shard: Path) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """(key, [(ending, offset, bytes)]) of every sample of an uncompressed shard, read from its headers alone.

    Raises RecordError naming shard and member.
    """
    try:
        with tarfile.open(shard, "r:", tarinfo=_Header) as tar:
            for key, group in groupby(_files(shard, tar), key=lambda member: member[0]):
                yield key, [(ending, member.offset_data, member.size) for _, ending, member in group]
    except RecordError:
        raise
    except _DAMAGED as error:
        raise RecordError(f"{shard}: not a complete, uncompressed tar file ({error})") from error


class _Header(tarfile.TarInfo):
    """A member's header. tarfile takes a damaged one after the first as the end of the shard, and reads extended
    headers of any size; here both are errors."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError):
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header: {error}") from error

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.size > _MAX_HEADER_BYTES and not header.isfile()):
            raise tarfile.InvalidHeaderError(f"{header.size:,} bytes")
        return header


def _files(shard: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, ending, member) of every file; the key is the name up to the first dot of its last part."""
    sample, size = "", 0
    while (member := tar.next()) is not None:
        tar.members = []  # which tarfile would keep for all of the shard
        if member.size < 0:
            raise RecordError(f"{shard}: member {member.name!r} has {member.size} bytes; download it again")
        if member.isdir():
            continue
        name = member.name.removeprefix("./")
        try:
            check_relative(name)
        except ValueError as error:
            raise RecordError(f"{shard}: member {error}") from error
        if not member.isfile() or member.issparse():
            raise RecordError(f"{shard}: member {name!r} is a link or a device, or sparse; only plain files are read")
        if member.size > MAX_MEMBER_BYTES:
            raise RecordError(f"{shard}: member {name!r} has {member.size:,} bytes; at most {MAX_MEMBER_BYTES:,}")
        path = PurePosixPath(name)
        key, dot, ending = path.name.partition(".")
        if dot and key:
            key = str(path.with_name(key))
            sample, size = key, member.size + (size if key == sample else 0)
            if size > MAX_SAMPLE_BYTES:
                raise RecordError(f"{shard}:{key} holds more than {MAX_SAMPLE_BYTES:,} bytes; split the sample")
            yield key, ending.lower(), member


def is_image(ending: str) -> bool:
    """Whether a member with this ending is an image."""
    return ending.rpartition(".")[2] in _IMAGES


def sample_record(shard: Path, key: str, members: list[tuple[str, bytes]], images: Path | None) -> Record:
    """The record of one sample, whose images are extracted to `images` if given; without, their content is not read."""
    where = f"{shard}:{key}"
    row: dict = {}
    text = ""
    pictures: list[tuple[str, bytes]] = []
    for ending, data in members:
        kind = ending.rpartition(".")[2]
        try:
            if kind == "json":
                row = parse_line(data)
            elif kind in _TEXTS:
                text = data.decode("utf-8-sig")
        except ValueError as error:
            raise RecordError(f"{where}.{ending}: not UTF-8 {kind} ({error})") from error
        if is_image(ending):
            pictures.append((ending, data))
    if not isinstance(row, dict):
        raise RecordError(f"{where}.json: expected a JSON object")
    if text.strip() and not any(row.get(name) for name in ("captions", "caption", "text", "conversations")):
        row["captions"] = [text.strip()]
    named = row.pop("image", None) or row.pop("images", None) or []
    names = named if isinstance(named, list) else [named]
    if len(names) != len(pictures) or not all(isinstance(name, str) for name in names):
        names = [f"{shard.name.split('.')[0]}/{key}.{ending}" for ending, _ in pictures]
    row.setdefault("id", row.pop("key", None) or f"{shard.name.split('.')[0]}/{key}")
    if names:
        row["image"] = names
    record = parse_record(row, where=where)
    if images is not None:
        for name, (_, data) in zip(names, pictures, strict=True):
            _extract(images, name, data, where)
    return record


def _extract(root: Path, name: str, data: bytes, where: str) -> None:
    """Write one image below the root, unless it is there already."""
    try:
        check_relative(name)
        target = root / name
        if not target.parent.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{name!r} leads through a link out of {root}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() or target.is_symlink():
            if target.is_symlink() or target.read_bytes() != data:
                raise ValueError(f"{target} exists and is another file; extract to an empty folder")
            return
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(data)
            check_header(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except (ValueError, RuntimeError) as error:
        raise RecordError(f"{where}: {error}") from error
    except OSError as error:
        if error.errno not in _NAMELESS:
            raise
        raise RecordError(f"{where}: {name[:80]!r} is no name for a file here ({error.strerror})") from error


def write_shards(pattern: Path, records: Iterable[Record], image_root: Path | None, per_shard: int = 10_000) -> int:
    """Write `STEM-000000.tar`, `STEM-000001.tar`, ... with the images found below `image_root`; returns the records.

    pattern: "FOLDER/STEM.tar". Equal input gives equal bytes. Each shard appears when it is complete.
    """
    count = 0
    pattern.parent.mkdir(parents=True, exist_ok=True)
    for number, group in groupby(enumerate(records), key=lambda pair: pair[0] // per_shard):
        shard = pattern.with_name(f"{pattern.stem}-{number:06d}.tar")
        partial = shard.with_name(f".{shard.name}.{os.getpid()}.partial")
        try:
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for index, record in group:
                    for ending, data in _sample(record, image_root):
                        info = tarfile.TarInfo(f"{index:09d}.{ending}")
                        info.size, info.mode = len(data), 0o644
                        tar.addfile(info, io.BytesIO(data))
                    count += 1
            os.replace(partial, shard)
        finally:
            partial.unlink(missing_ok=True)
    return count


def _sample(record: Record, image_root: Path | None) -> Iterator[tuple[str, bytes]]:
    for index, image in enumerate(record.images):
        if image_root is None:
            raise ValueError(f"record {record.id!r} names an image; say where images lie (--images FOLDER)")
        ending = PurePosixPath(image).suffix.removeprefix(".").lower()
        if ending not in _IMAGES:
            raise ValueError(f"record {record.id!r}: image {image!r} has none of the endings {', '.join(_IMAGES)}")
        data = resolve_image(image_root, image).read_bytes()
        yield (ending if len(record.images) == 1 else f"{index}.{ending}"), data
    if record.captions:
        yield "txt", record.captions[0].encode()
    yield "json", json.dumps(record_to_json(record), ensure_ascii=False).encode()
