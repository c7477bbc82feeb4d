"""A judge whose question the user writes: a template with fields of the prediction, answered yes or no or 0 to 10."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hacl.chat_api import ChatReply
from hacl.evaluation.judges.base import FIELD, Answer, Item, Judge, Messages, text_of, visible

SCALES = {
    "yes-no": "Give your reasons in a few sentences. Then close with one line: Score: yes or Score: no",
    "0-10": "Give your reasons in a few sentences. Then close with one line that says Score: and a whole number from 0 "
    "(worst) to 10 (best).",
}
SCORE = re.compile(r"\bscore\b[\s*_`:=]*(yes\b|no\b|\d+(?:\.\d+)?)(?!\s*(?:-|to)\s*\d)", re.IGNORECASE)


class RubricJudge(Judge):
    """Predictions: `id` and every field the rubric names in braces, such as {question}, {response}, {criteria}.

    Row: `id`, `score` (true or false, or a whole number, None where the reply could not be read), `review`.

    Raises:
        ValueError: the rubric names no field, or the scale is unknown.
    """

    name = "rubric"
    reminder = "Your reply has no score that can be read. Reply with the line that says Score: and nothing else."

    def __init__(self, image_root: Path | str | None = None, *, rubric: str, scale: str = "0-10"):
        super().__init__(image_root)
        if scale not in SCALES:
            raise ValueError(f"scale {scale!r}: use one of {', '.join(SCALES)}")
        self.fields = sorted(set(FIELD.findall(rubric)))
        if not self.fields:
            raise ValueError("the rubric names no field of the predictions; write for example {response} in it")
        self.scale = scale
        self.prompts = {"score": f"{rubric.strip()}\n\n{SCALES[scale]}"}

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "scale": self.scale}

    def questions(self, item: Item) -> dict[str, Messages]:
        return {"score": self.message("score", item, {name: text_of(item, name) for name in self.fields})}

    def parse(self, question: str, reply: ChatReply, item: Item) -> bool | int | None:
        """The last score stated; None if it is none of the scale."""
        found = SCORE.findall(visible(reply.text))
        if not found:
            return None
        last = found[-1].lower()
        if self.scale == "yes-no":
            return {"yes": True, "no": False}.get(last)
        return int(last) if last.isdecimal() and int(last) <= 10 else None

    def rows(self, item: Item, answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
        answer = answers["score"]
        row = {"id": item.id, "score": answer.value, "review": visible(answer.text)}
        return [row | ({} if answer.first is None else {"first_reply": answer.first})]

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        scores = [row["score"] for row in rows if row["score"] is not None]
        return {"mean": sum(scores) / len(scores) if scores else None}
