"""Find every record of a file that cannot or should not be trained on, and say what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from hacl.data.images import check_relative, load_image, resolve_image
from hacl.data.records import HallucinatedCaption, Record, RecordError, iter_raw, parse_record
from hacl.hallucinate.english import same_text_key, words_of
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.vocabulary import default_lexicon


@dataclass(frozen=True)
class Problem:
    """kind: what is wrong, for counting; where: "file:line"; id: of the record, "" where unknown."""

    kind: str
    where: str
    id: str
    message: str

    def __str__(self) -> str:
        name = f" record {self.id!r}" if self.id else ""
        return f"{self.where}:{name} {self.message}" if name else self.message


@dataclass
class AuditReport:
    """Counts over a whole file, and its problems in the order of the file."""

    file: str
    records: int = 0
    captions: int = 0
    hallucinated: Counter[str] = field(default_factory=Counter)
    without_hallucinated: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict:
        row = asdict(self)
        row["problem_kinds"] = dict(Counter(problem.kind for problem in self.problems))
        return row


def audit_file(path: Path, *, image_root: Path | None = None, lexicon: Lexicon | None = None) -> AuditReport:
    """Check every record of a file.

    image_root: also open and decode every image below it; without it only the form of image paths is checked. lexicon:
    recognises objects in hallucinated captions. Raises FileNotFoundError.
    """
    lexicon = default_lexicon() if lexicon is None else lexicon
    report = AuditReport(str(path))

    def unreadable(error: RecordError) -> None:
        report.problems.append(Problem("unreadable", str(path), "", str(error)))

    ids: dict[str, str] = {}
    decoded: dict[str, str | None] = {}
    for where, raw in iter_raw(path, unreadable):
        report.records += 1
        try:
            record = parse_record(raw, where=where)
        except RecordError as error:
            report.problems.append(Problem("bad record", where, "", str(error)))
            continue
        report.captions += len(record.captions)
        report.hallucinated.update(caption.type for caption in record.hallucinated)
        report.without_hallucinated += bool(record.captions) and not record.hallucinated
        found = [*_text_problems(record, lexicon), *_image_problems(record, image_root, decoded)]
        if record.id in ids:
            found.insert(0, ("duplicate id", f"repeats the id of {ids[record.id]}; make ids unique"))
        ids.setdefault(record.id, where)
        report.problems += [Problem(kind, where, record.id, message) for kind, message in found]
    return report


def _text_problems(record: Record, lexicon: Lexicon) -> Iterator[tuple[str, str]]:
    captions = {same_text_key(text): index for index, text in reversed(list(enumerate(record.captions)))}
    if len(captions) < len(record.captions):
        yield "duplicate caption", "two captions are the same; keep one"
    seen: dict[tuple[str, ...], int] = {}
    for index, caption in enumerate(record.hallucinated):
        key = same_text_key(caption.text)
        if key in captions:
            same = f"captions[{captions[key]}]"
            yield "hallucinated is true", f"hallucinated[{index}] says the same as {same}; remove or rewrite it"
        if key in seen:
            yield "duplicate hallucinated", f"hallucinated[{index}] repeats hallucinated[{seen[key]}]; remove one"
        seen.setdefault(key, index)
        if names := _present(caption, record, lexicon):
            what = ", ".join(names)
            yield "object is present", f"hallucinated[{index}] adds {what}, which `objects` says is there; rewrite it"
    yield from _conversation_problems(record)


def _conversation_problems(record: Record) -> Iterator[tuple[str, str]]:
    """What a chat template cannot render, or renders without anything to learn from."""
    roles = [turn.role for turn in record.conversation]
    if roles and "assistant" not in roles:
        yield "no answer", "no turn of the assistant, so the conversation gives no label; add an answer or remove it"
    for index, (before, role) in enumerate(pairwise(roles), start=1):
        if before == role:
            yield "turns", f"conversations[{index}] is a second turn of the {role} in a row; join the two"
    marks = sum(turn.text.count("<image>") for turn in record.conversation)
    if record.conversation and marks != len(record.images):
        yield "image marks", f"{len(record.images)} image(s) but {marks} <image> mark(s); write one mark per image"
    if not record.conversation and len(record.images) > 1:
        yield "image marks", f"{len(record.images)} images without a conversation that places them; write one"


def _present(caption: HallucinatedCaption, record: Record, lexicon: Lexicon) -> list[str]:
    """Objects of the edited words that are annotated in the image, for edits that should add an absent one."""
    if caption.type not in ("object", "insertion") or caption.span is None or not record.objects or caption.of is None:
        return []
    before = {mention.kind.name for mention in lexicon.mentions(words_of(record.captions[caption.of]))}
    inside = lexicon.mentions(words_of(caption.text[slice(*caption.span)]))
    added = {mention.kind.name for mention in inside if mention.word in mention.kind.words}
    return sorted((added - before) & record.objects.keys())


def _image_problems(
    record: Record, image_root: Path | None, decoded: dict[str, str | None]
) -> Iterator[tuple[str, str]]:
    for image in record.images:
        try:
            check_relative(image)
        except ValueError as error:
            yield "image path", str(error)
            continue
        if image_root is None:
            continue
        if image not in decoded:
            decoded[image] = _image_error(image_root, image)
        if decoded[image]:
            yield "image", decoded[image]


def _image_error(image_root: Path, image: str) -> str | None:
    try:
        load_image(resolve_image(image_root, image)).close()
    except (ValueError, OSError) as error:
        return str(error)
    return None
