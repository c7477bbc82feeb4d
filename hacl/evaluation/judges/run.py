"""Run a judge over predictions: ask, ask again what could not be read, write reviews and how they came about.

Reviews depend on predictions and replies only, and replies are in the client's cache the moment they arrive. So a run
that was interrupted is simply started again: what is known costs nothing, and the result is the same file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hacl.chat_api import ChatClient, ChatReply, ChatRequest, Decoding
from hacl.evaluation.judges.base import Answer, Item, Judge
from hacl.evaluation.scorers.base import InputError, listed
from hacl.evaluation.scorers.reading import iter_rows, require, sha256_of

Progress = Callable[[Iterable[ChatReply], int, str], Iterable[ChatReply]]


@dataclass
class JudgeReport:
    """How reviews came about; stands beside them as JSON.

    parse_rate: verdicts that could be read / verdicts given, None if there are none. `first_parse_rate`: the same
    before anything was asked again. `unparsed` and `failed` (id to error) name the predictions concerned.
    """

    judge: dict[str, Any]
    inputs: dict[str, str]
    predictions: int = 0
    reviews: int = 0
    verdicts: int = 0
    parsed: int = 0
    parsed_at_first: int = 0
    reasked: int = 0
    cut_off: int = 0
    unparsed: list[str | int] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    spending: dict[str, Any] = field(default_factory=dict)

    @property
    def parse_rate(self) -> float | None:
        return self.parsed / self.verdicts if self.verdicts else None

    @property
    def complete(self) -> bool:
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        first = self.parsed_at_first / self.verdicts if self.verdicts else None
        return {"parse_rate": self.parse_rate, "first_parse_rate": first, "complete": self.complete, **vars(self)}

    def __str__(self) -> str:
        rate = "no verdicts" if self.parse_rate is None else f"{self.parsed} of {self.verdicts} verdicts read"
        if self.parse_rate is not None:
            rate += f" (parse rate {self.parse_rate:.3f}; {self.parsed_at_first} at the first asking)"
        lines = [f"{self.reviews} of {self.predictions} predictions reviewed by {self.judge['model']}; {rate}"]
        lines += [f"{name}: {value}" for name, value in self.summary.items()]
        if self.cut_off:
            lines.append(f"{self.cut_off} replies reached the token limit and may lack their end")
        if self.unparsed:
            lines.append(f"could not be read, kept as they are: {listed(self.unparsed)}")
        lines += [f"no review of {name}: {error}" for name, error in list(self.failed.items())[:5]]
        if len(self.failed) > 5:
            lines.append(f"and {len(self.failed) - 5} more without a review")
        return "\n".join(lines)


def read_items(
    judge: Judge, predictions: Path | str, joined: Mapping[str, Path | str | None], limit: int | None = None
) -> list[Item]:
    """Predictions, each with the fields of the rows that have its id in other files.

    joined: "" to a file whose fields are taken where the prediction lacks them (the benchmark's questions); any other
        name to a file of answers, whose answer becomes the field of that name. None: not given.

    Raises:
        InputError: an id is missing, repeated, or not in a joined file. FileNotFoundError: no such file.
    """
    tables = {name: _by_id(judge, path) for name, path in joined.items() if path is not None}
    items: dict[str, Item] = {}
    for where, row in iter_rows(predictions):
        key = require(row, judge.id_field, where, (str, int))
        if str(key) in items:
            raise InputError(f"{where}: {judge.id_field} {key!r} is there twice; keep one")
        for name, table in tables.items():
            if str(key) not in table:
                raise InputError(f"{where}: {judge.id_field} {key!r} is not in {joined[name]}")
            other = table[str(key)]
            row = {**other, **row} if not name else {**row, name: _answer(other, f"{joined[name]}, {key!r}")}
        items[str(key)] = Item(key, row, str(where))
        if len(items) == limit:
            break
    return list(items.values())


def _by_id(judge: Judge, path: Path | str) -> dict[str, dict[str, Any]]:
    """Rows by id; a list of questions without ids is counted from 0."""
    table: dict[str, dict[str, Any]] = {}
    for position, (where, row) in enumerate(iter_rows(path)):
        key = str(row.get(judge.id_field, position))
        if key in table:
            raise InputError(f"{where}: {judge.id_field} {key!r} is there twice; keep one")
        table[key] = row
    return table


def _answer(row: Mapping[str, Any], where: str) -> str:
    return require(row, next((name for name in ("response", "answer", "reference") if name in row), "response"), where)


def plan(judge: Judge, items: Sequence[Item], decoding: Decoding) -> list[tuple[int, str, ChatRequest]]:
    """(position of the item, question, request) of everything to ask at first."""
    asked = [(position, judge.questions(item)) for position, item in enumerate(items)]
    return [
        (position, question, ChatRequest(f"{items[position].id}/{question}", messages, decoding))
        for position, questions in asked
        for question, messages in questions.items()
    ]


def run_judge(
    judge: Judge,
    items: Sequence[Item],
    client: ChatClient,
    out: Path | str,
    *,
    decoding: Decoding,
    reask: int = 1,
    inputs: Iterable[Path | str] = (),
    progress: Progress = lambda replies, _total, _title: replies,
) -> JudgeReport:
    """Review the items and write `out` (JSONL, input order) and `report_path(out)`.

    A reply that cannot be read is asked for again up to `reask` times, with the reply and a reminder in the
    conversation; the first reply stays in the row. A prediction for which the server gave no reply has no row.

    Raises:
        InputError: a prediction lacks a field. ChatError: the server refuses to go on; replies so far are kept.
    """
    report = JudgeReport(
        judge={
            "name": judge.name,
            "version": judge.version,
            "model": client.model,
            "base_url": client.endpoint.base_url,
            "prompt_sha256": judge.prompt_sha256(),
            "decoding": decoding.body(),
            "reask": reask if judge.reminder else 0,
            **judge.settings,
        },
        inputs={str(path): sha256_of(path) for path in inputs},
        predictions=len(items),
    )
    answers: list[dict[str, Answer]] = [{} for _ in items]
    wanted = plan(judge, items, decoding)
    for turn in range(report.judge["reask"] + 1):
        unread = []
        with contextlib.closing(client.complete_many([request for _, _, request in wanted])) as replies:
            shown = progress(replies, len(wanted), "asking again" if turn else "asking")
            for (position, question, request), reply in zip(wanted, shown, strict=True):
                if reply.error is not None:
                    report.failed[request.id] = reply.error
                    continue
                value = judge.parse(question, reply, items[position])
                before = answers[position].get(question)
                first = None if before is None else before.first or before.text
                answers[position][question] = Answer(value, reply.text, first)
                report.cut_off += reply.finish_reason == "length"
                report.parsed_at_first += not turn and value is not None
                if value is None:
                    unread.append((position, question, _again(judge, request, reply)))
        if not unread:
            break
        wanted = unread
        report.reasked += len(unread) if turn < report.judge["reask"] else 0
    _write(judge, items, answers, report, Path(out))
    report.spending = client.spending.to_json()
    report_path(out).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return report


def _again(judge: Judge, request: ChatRequest, reply: ChatReply) -> ChatRequest:
    more = [{"role": "assistant", "content": reply.text}, {"role": "user", "content": judge.reminder}]
    return ChatRequest(request.id, [*request.messages, *more], request.decoding)


def report_path(out: Path | str) -> Path:
    """Where the report of reviews stands: `reviews.jsonl` has `reviews.judge.json`."""
    return Path(out).with_suffix(".judge.json")


def _write(
    judge: Judge, items: Sequence[Item], answers: Sequence[Mapping[str, Answer]], report: JudgeReport, out: Path
) -> None:
    """Rows of all items whose every question has a reply, in one step: a reader never sees half a file."""
    rows = []
    for item, found in _whole(judge, items, answers):
        own = judge.rows(item, found)
        rows += [row | {"judge": report.judge["model"], "prompt_sha256": report.judge["prompt_sha256"]} for row in own]
        report.reviews += 1
        report.verdicts += len(found)
        report.parsed += sum(answer.value is not None for answer in found.values())
        report.unparsed += [item.id] if any(answer.value is None for answer in found.values()) else []
    report.summary = judge.summary(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(out.name + ".tmp")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(draft, out)


def _whole(
    judge: Judge, items: Sequence[Item], answers: Sequence[Mapping[str, Answer]]
) -> Iterator[tuple[Item, Mapping[str, Answer]]]:
    for item, found in zip(items, answers, strict=True):
        if found and len(found) == len(judge.questions(item)):
            yield item, found
