"""What contrastive extraction reads: prompts, and for each two continuations that a data file describes. No torch here.

A behaviours file (YAML or JSON) names a pair of continuations for each behaviour, so a new behaviour needs no code:

  format: hacl-behaviours-1
  name: pope
  version: 1
  fields: {id: "{question_id}", prompt: "{text}", behaviour: "{label}", image: "{image}"}
  by_behaviour:
    "yes": {pos: {answer: "Yes, there is"}, neg: {answer: "No, there is"}}
  default: {pos: {suffix: "...", answer: "..."}, neg: {...}}

suffix is appended to the prompt, answer begins the reply. `{key}` stands for a value of the row, or for `file` (stem of
the rows' file) and `key` (its key in an object, else its place, from 0). A behaviour with `keep: true` in place of pos
and neg, or a row with it, is not to be moved: its target is zero.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hacl.config_io import read_plain
from hacl.data.images import resolve_image
from hacl.data.records import Record

FORMAT = "hacl-behaviours-1"
FIELDS = ("id", "image", "prompt", "group", "behaviour", "label", "split", "pos", "neg", "keep")
MARK = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Side:
    """One continuation. suffix: appended to the prompt; answer: the reply it begins with."""

    answer: str
    suffix: str = ""


KEEP: dict[str, Side] = {}  # what a behaviour with `keep: true` has in place of pos and neg
KEPT = {"pos": Side(""), "neg": Side("")}


@dataclass(frozen=True)
class ContrastRow:
    """A prompt with the reply that is wanted (pos) and the one that is not (neg).

    group: what splits keep together (the image); behaviour: what templates, splits and reports go by; label: free text;
    keep: the reply is fine as it is, so there is no pos and neg and the target is zero.
    """

    id: str
    prompt: str
    pos: Side
    neg: Side
    behaviour: str = "default"
    image: Path | None = None
    group: str = ""
    label: str | None = None
    split: str | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id if self.image is None else str(self.image))
        if self.keep:
            return
        for name, side in (("pos", self.pos), ("neg", self.neg)):
            if not side.answer.strip():
                raise ValueError(f"row {self.id!r}: {name} has no answer; name the reply to begin with")


@dataclass(frozen=True)
class Behaviours:
    """Templates of a behaviours file. digest: names its content."""

    name: str
    version: int
    by_behaviour: dict[str, dict[str, Side]]
    default: dict[str, Side] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def load(cls, path: Path | str) -> Behaviours:
        """Read a behaviours file. Raises FileNotFoundError, or ValueError naming file, key and fix."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such behaviours file; see configs/steering for examples")
        content = read_plain(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a mapping with format: {FORMAT}")
        known = {"format", "name", "version", "fields", "by_behaviour", "default", "remove"}
        unknown = sorted(map(str, content.keys() - known))
        if unknown:
            raise ValueError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
        fields = {str(key): value for key, value in (content.get("fields") or {}).items()}
        strange = sorted(fields.keys() - set(FIELDS))
        if strange:
            raise ValueError(f"{path}: fields.{strange[0]}: rows have {', '.join(FIELDS)}")
        named = content.get("by_behaviour") or {}
        wrong = [name for name in named if not isinstance(name, str)]
        if wrong:
            raise ValueError(f"{path}: by_behaviour has the key {wrong[0]!r}, no text; write it in quotes")
        default = content.get("default")
        return cls(
            str(content.get("name", path.stem)),
            int(content.get("version", 1)),
            {name: _pair(pair, f"{path}: by_behaviour.{name}") for name, pair in named.items()},
            None if default is None else _pair(default, f"{path}: default"),
            fields,
            tuple(content.get("remove") or ()),
            hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        )

    def row(self, raw: Mapping[str, Any], image_root: Path | None, where: str) -> ContrastRow:
        """One row from its raw values. Raises ValueError or FileNotFoundError naming the row and the key."""
        own = {name: raw[name] for name in FIELDS if raw.get(name) is not None}
        keep = own.get("keep", False)
        if not isinstance(keep, bool):
            raise ValueError(f"{where}: keep is {keep!r}; write true or false")
        patterns = {name: value for name, value in self.fields.items() if not (keep and name in own)}
        if keep:  # of another data set than the others: it need not have their fields
            patterns.pop("image", None)
        found = own | {name: _filled(pattern, raw, where) for name, pattern in patterns.items()}
        for name in ("id", "prompt"):
            if name not in found:
                raise ValueError(f"{where}: no {name!r}; add it, or say where it is in fields of the behaviours file")
        prompt = str(found["prompt"])
        for text in self.remove:
            prompt = prompt.replace(text, "")
        behaviour = str(found.get("behaviour", "default"))
        keep = keep or self.by_behaviour.get(behaviour, self.default) == KEEP
        sides = KEPT if keep else self._sides(behaviour, found, {**raw, **found}, where)
        image = found.get("image")
        if image is not None:
            image = resolve_image(Path(image_root or "."), str(image))
        return ContrastRow(
            str(found["id"]), prompt.strip(), sides["pos"], sides["neg"], behaviour, image,
            str(found.get("group") or found.get("image") or found["id"]),
            *(None if found.get(name) is None else str(found[name]) for name in ("label", "split")), keep,
        )  # fmt: skip

    def _sides(self, behaviour: str, found: Mapping, raw: Mapping, where: str) -> dict[str, Side]:
        own = {name: _side(found[name], f"{where}: {name}") for name in ("pos", "neg") if name in found}
        if len(own) == 2:
            return own
        template = self.by_behaviour.get(behaviour, self.default)
        if template is None:
            known = ", ".join(sorted(self.by_behaviour)) or "none"
            raise ValueError(
                f"{where}: behaviour {behaviour!r} has no template in {self.name!r} (it has: {known}) and there is no "
                "default"
            )
        made = {
            name: Side(_filled(side.answer, raw, where), _filled(side.suffix, raw, where))
            for name, side in template.items()
        }
        return {**made, **own}


def read_rows(paths: Sequence[Path | str], behaviours: Behaviours, image_root: Path | str | None) -> list[ContrastRow]:
    """Rows of JSONL files, JSON arrays, or JSON objects of objects, with their continuations.

    Where one id means different rows in two files (those of POPE count from 1), every id becomes `FILE/ID`, FILE being
    the stem of its file, as `steer.py sweep` names questions. A row that two files have alike comes once.

    Raises:
        FileNotFoundError: a file or an image is missing.
        ValueError: what is wrong, with file and row; an id that occurs twice in a file.
    """
    root = None if image_root is None else Path(image_root)
    files: list[tuple[str, dict[str, ContrastRow]]] = []
    for path in map(Path, paths):
        found: dict[str, ContrastRow] = {}
        for key, raw in _raw_rows(path):
            where = f"{path}: row {key}"
            if not isinstance(raw, dict):
                raise ValueError(f"{where}: expected an object, found {type(raw).__name__}")
            row = behaviours.row({"file": path.stem, "key": key, **raw}, root, where)
            if row.id in found:
                raise ValueError(f"{where}: id {row.id!r} occurs twice")
            found[row.id] = row
        files.append((path.stem, found))
    rows: dict[str, ContrastRow] = {}
    clash = any(rows.setdefault(row.id, row) != row for _, found in files for row in found.values())
    if clash:
        rows = {}
        for stem, found in files:
            named = {f"{stem}/{row.id}": row for row in found.values()}
            twice = next((name for name in named if name in rows), None)
            if twice is not None:
                raise ValueError(f"{', '.join(map(str, paths))}: id {twice!r} occurs twice; rename one of the files")
            rows.update({name: replace(row, id=name) for name, row in named.items()})
    if not rows:
        raise ValueError(f"{', '.join(map(str, paths))}: no row")
    return list(rows.values())


def rows_from_records(records: Iterable[Record], image_root: Path | str, *, prompt: str = "") -> list[ContrastRow]:
    """A row for each hallucinated caption of records with one image: the caption it was made from against it.

    behaviour: the type of the hallucination.

    Raises:
        ValueError: no hallucinated caption at all.
    """
    rows = []
    for record in records:
        if len(record.images) != 1:
            continue
        for number, edited in enumerate(record.hallucinated):
            true = record.captions[edited.of if edited.of is not None else 0]
            rows.append(
                ContrastRow(
                    f"{record.id}#{number}", prompt, Side(true), Side(edited.text), edited.type,
                    resolve_image(Path(image_root), record.images[0]), record.image_id or record.id,
                )
            )  # fmt: skip
    if not rows:
        raise ValueError("no record has one image and a hallucinated caption; run data_prep/make_hallucinations.py")
    return rows


def digest_of(rows: Sequence[ContrastRow]) -> str:
    """Names rows and their order."""
    digest = hashlib.sha256()
    for row in rows:
        image = None if row.image is None else row.image.name
        values = [row.id, row.prompt, vars(row.pos), vars(row.neg), row.behaviour, image, row.group, row.split]
        values += [True] if row.keep else []
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()[:16]


def _raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of rows")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict) and all(isinstance(value, dict) for value in content.values()):
        yield from ((str(key), value) for key, value in content.items())
    elif isinstance(content, list):
        yield from ((str(number), value) for number, value in enumerate(content))
    else:
        for number, line in enumerate(text.splitlines()):
            if line.strip():
                try:
                    yield str(number), json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}: line {number + 1} is not JSON ({error})") from error


def _filled(pattern: Any, raw: Mapping[str, Any], where: str) -> str:
    """A template with the row's values in place of its marks."""

    def value(match: re.Match) -> str:
        if match[1] not in raw:
            raise ValueError(f"{where}: the behaviours file asks for {match[1]!r}, which the row does not have")
        return str(raw[match[1]])

    return MARK.sub(value, str(pattern))


def _pair(raw: Any, where: str) -> dict[str, Side]:
    """pos and neg; nothing for a behaviour that is to stay as it is."""
    if raw == {"keep": True}:
        return KEEP
    if not isinstance(raw, dict) or raw.keys() != {"pos", "neg"}:
        raise ValueError(f"{where}: expected pos and neg, each with an answer (or keep: true alone)")
    return {name: _side(raw[name], f"{where}.{name}") for name in ("pos", "neg")}


def _side(raw: Any, where: str) -> Side:
    """From a text (the answer) or {answer, suffix}."""
    if isinstance(raw, str):
        return Side(raw)
    if not isinstance(raw, dict) or not {"answer"} <= raw.keys() <= {"answer", "suffix"}:
        raise ValueError(f"{where}: expected a text, or answer and optionally suffix")
    if not all(isinstance(value, str) for value in raw.values()):
        raise ValueError(f"{where}: answer and suffix are texts; write yes and no in quotes")
    return Side(**raw)
