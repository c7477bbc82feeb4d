"""Where a benchmark's files and images lie: local folders first, by a fixed layout or by name. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".tsv")
HUB = "hub:"


@dataclass(frozen=True)
class Place:
    """data: file or folder of one benchmark; images: folders its image names may be relative to, tried in order."""

    data: Path
    images: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder of the data."""
        return self.data if self.data.is_dir() else self.data.parent


def named_values(entries: Sequence[str], names: Sequence[str], flag: str) -> tuple[str | None, dict[str, str]]:
    """(value for every benchmark, value by benchmark) of a repeated ``VALUE`` or ``NAME=VALUE`` flag.

    Raises:
        ValueError: two values for one benchmark, or two for all.
    """
    general, found = None, {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        if separator and name in names:
            if name in found:
                raise ValueError(f"{flag} {name}= was given twice")
            found[name] = value
        elif general is None:
            general = entry
        else:
            raise ValueError(f"{flag} {general} and {entry}: give one for all, the others as NAME=VALUE")
    return general, found


def locate(benchmark: str, data: str | None, own: str | None, images: str | None) -> Place:
    """Files and images of a benchmark.

    data: folder with one subfolder (or file) per benchmark; own: file or folder of this benchmark, instead; images:
    image root; by default ``images`` in the benchmark's folder or beside it, the folder itself, the one around it.

    Raises:
        FileNotFoundError: what was given does not exist, or nothing was.
    """
    if own is not None:
        place = Path(own).expanduser()
        if not place.exists():
            raise FileNotFoundError(f"--data {benchmark}={own}: no such file or folder")
    elif data is None:
        raise FileNotFoundError(
            f"{benchmark}: no data; give --data FOLDER (with {benchmark}/ in it) or {benchmark}=PATH"
        )
    else:
        root = Path(data).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"--data {data}: no such folder")
        choices = [root / benchmark, *(root / f"{benchmark}{suffix}" for suffix in SUFFIXES)]
        place = next((path for path in choices if path.exists()), root)
    folder = place if place.is_dir() else place.parent
    if images is not None:
        shown = Path(images).expanduser()
        if not shown.is_dir():
            raise FileNotFoundError(f"--images {images}: no such folder")
        return Place(place, (shown,))
    roots = (folder / "images", folder.parent / "images", folder, folder.parent)
    return Place(place, tuple(path for path in roots if path.is_dir()))


def data_files(place: Place, patterns: Sequence[str], wanted: str) -> list[Path]:
    """The file of a place, or the files of its folder that match the first pattern to match any, by name.

    Raises:
        FileNotFoundError: none matches; says what is expected.
    """
    if place.data.is_file():
        return [place.data]
    for pattern in patterns:
        found = sorted(path for path in place.data.glob(pattern) if path.is_file())
        if found:
            return found
    there = ", ".join(sorted(item.name for item in place.data.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(f"{place.data}: no {wanted} ({' or '.join(patterns)}) in it, but {there}")


def find_image(roots: Sequence[Path], name: str, where: str) -> Path:
    """The file of an image: below the first root that has it.

    Raises:
        FileNotFoundError, ValueError: names question and file; a name that leaves its root is refused.
    """
    from hacl.data.images import resolve_image

    for root in roots:
        try:
            return resolve_image(root, name)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    tried = " or ".join(str(root) for root in roots)
    raise FileNotFoundError(f"{where}: image {name!r} is not in {tried}; set --images or remove the question")
