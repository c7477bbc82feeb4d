"""AMBER's ground truth: annotations, related words and safe words, from files or from loaded content.

Source: junyangwang0410/AMBER@534babf6 (Apache-2.0), ``data/annotations.json``, ``data/relation.json``,
``data/safe_words.txt``. The files are fetched by the user; nothing of them is in this repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.reading import load_json

FILES = {"annotations": "annotations.json", "relation": "relation.json", "safe_words": "safe_words.txt"}
GENERATIVE = "generative"
# Annotation type -> group. The official script counts every other type (the file has "discriminative-relation" and
# plain "relation") as a relation question.
GROUP_OF_TYPE = {
    "generative": GENERATIVE,
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
}


@dataclass(frozen=True)
class ImageWords:
    """What one image shows and what models tend to invent for it.

    Attributes:
        truth, hallu: listed words, duplicates kept: each counts in the denominator of Cover or Cog.
        truth_index, hallu_index: word -> position of the listed word it stands for. Relatives of all listed words come
            before the words themselves, and the first entry wins, as in the script: with "person" and "man" listed in
            this order, a caption's "man" covers "person".
    """

    truth: Sequence[str]
    hallu: Sequence[str]
    truth_index: Mapping[str, int]
    hallu_index: Mapping[str, int]


@dataclass
class AmberReferences:
    """The three files, checked.

    Attributes:
        annotations: one entry per id; id n is entry n - 1.
        relation: word to its relatives, for every word that is ever listed.
        safe_words: words that are neither right nor wrong anywhere.
        paths: the files read, empty for loaded content.
    """

    annotations: Sequence[Mapping[str, Any]]
    relation: Mapping[str, Sequence[str]]
    safe_words: frozenset[str]
    paths: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        name = self._name("annotations")
        for position, entry in enumerate(self.annotations, start=1):
            if not isinstance(entry, Mapping) or "type" not in entry or "truth" not in entry:
                raise InputError(f"{name}: entry {position} lacks `type` or `truth`; is it AMBER's annotations.json?")
            if entry.get("id", position) != position:
                raise InputError(
                    f"{name}: entry {position} has id {entry['id']!r}, but AMBER finds an annotation by its position; "
                    "give the whole file, or renumber annotations and predictions from 1"
                )

    def __len__(self) -> int:
        return len(self.annotations)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word AMBER knows: all heads and all relatives. Other nouns of a caption are ignored."""
        return frozenset(self.relation) | {word for relatives in self.relation.values() for word in relatives}

    def group(self, identifier: int) -> str:
        """The group of an id in 1..len: generative, existence, state, number, action or relation."""
        return GROUP_OF_TYPE.get(self.annotations[identifier - 1]["type"], "relation")

    def answer(self, identifier: int) -> str:
        """The true answer of a question, "yes" or "no"."""
        answer = self.annotations[identifier - 1]["truth"]
        if answer not in ("yes", "no"):
            raise InputError(f'{self._name("annotations")}: id {identifier}: `truth` is {answer!r}, not "yes" or "no"')
        return answer

    def image_words(self, identifier: int) -> ImageWords:
        """The word lists of a generative id."""
        entry = self.annotations[identifier - 1]
        truth, hallu = entry["truth"], entry.get("hallu", [])
        return ImageWords(truth, hallu, self._index(truth, identifier), self._index(hallu, identifier))

    def _index(self, words: Sequence[str], identifier: int) -> dict[str, int]:
        index: dict[str, int] = {}
        for position, word in enumerate(words):
            if word not in self.relation:
                raise InputError(f"{self._name('relation')}: no entry {word!r}, which annotation {identifier} lists")
            for relative in self.relation[word]:
                index.setdefault(relative, position)
        for position, word in enumerate(words):
            index.setdefault(word, position)
        return index

    def _name(self, part: str) -> str:
        return next((str(path) for path in self.paths if path.name == FILES[part]), FILES[part])


def open_references(references: Any) -> AmberReferences:
    """Open AMBER's ground truth.

    Args:
        references: a folder with the three files (or with them in ``data/``), the path of ``annotations.json`` (the
            other two beside it), the three paths, or loaded content: a mapping with the keys ``annotations``,
            ``relation`` and ``safe_words`` (or the file names), or a sequence of the three, told apart by their type.

    Raises:
        FileNotFoundError: a path is missing.
        InputError: content of the wrong shape.
    """
    if references is None:
        raise InputError(f"amber needs references: a folder with {', '.join(FILES.values())}")
    if isinstance(references, str | Path):
        return _from_paths(_find(Path(references)))
    if isinstance(references, Mapping):
        parts = {part: references.get(part, references.get(name)) for part, name in FILES.items()}
    else:
        entries = list(references)
        if entries and all(isinstance(entry, str | Path) for entry in entries):
            return _from_paths(_sort([Path(entry) for entry in entries]))
        parts = {
            "annotations": next((e for e in entries if _is_list_of(e, Mapping)), None),
            "relation": next((e for e in entries if isinstance(e, Mapping)), None),
            "safe_words": next(
                (e for e in entries if not isinstance(e, Mapping) and not _is_list_of(e, Mapping)), None
            ),
        }
    missing = [name for name, content in parts.items() if content is None]
    if missing:
        raise InputError(f"amber references lack {', '.join(missing)}; needed are {', '.join(FILES)}")
    if all(isinstance(content, str | Path) for content in parts.values()):
        return _from_paths({part: Path(path) for part, path in parts.items()})
    words = parts["safe_words"]
    words = words.splitlines() if isinstance(words, str) else words
    return AmberReferences(parts["annotations"], parts["relation"], frozenset(words))


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], kind)


def _find(path: Path) -> dict[str, Path]:
    if path.is_dir():
        folder = path if (path / FILES["annotations"]).exists() else path / "data"
        folder = folder if (folder / FILES["annotations"]).exists() else path
    elif path.name in FILES.values():
        folder = path.parent
    elif path.exists():  # a renamed annotations file, with the two lists beside it
        return {"annotations": path} | {part: path.parent / FILES[part] for part in ("relation", "safe_words")}
    else:
        raise FileNotFoundError(f"amber references {path}: no such file or folder")
    return {part: folder / name for part, name in FILES.items()}


def _sort(paths: Sequence[Path]) -> dict[str, Path]:
    if len(paths) == 1:
        return _find(paths[0])
    found = {part: path for part, name in FILES.items() for path in paths if path.name == name}
    if len(paths) != len(FILES) or len(found) != len(FILES):
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"amber references: give {', '.join(FILES.values())}, or the folder they are in; got {names}")
    return found


def _from_paths(paths: Mapping[str, Path]) -> AmberReferences:
    annotations = _json(paths["annotations"], list)
    relation = _json(paths["relation"], dict)
    words = _text(paths["safe_words"]).splitlines()
    return AmberReferences(annotations, relation, frozenset(words), list(paths.values()))


def _json(path: Path, kind: type) -> Any:
    content = load_json(path)
    if not isinstance(content, kind):
        raise InputError(f"{path}: a JSON {'array' if kind is list else 'object'} is expected")
    return content


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; amber references are {', '.join(FILES.values())}")
    return path.read_text(encoding="utf-8-sig")
