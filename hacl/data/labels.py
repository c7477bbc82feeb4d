"""Where the answers stand in a rendered conversation, and which of its tokens are therefore labels.

Two ways, which give the same labels where a template allows both; neither looks for an answer's text:

blocks: the template itself marks answers with `{% generation %}`, and the rendering tracks them. This is the
    assistant mask of `apply_chat_template(return_assistant_tokens_mask=True)` in characters. That method's mask of
    tokens is not used: a processor that expands images without a record of it moves it, and a tokenizer whose offsets
    leave out white space loses it (transformers 5.23).
prefixes: the template marks nothing, as most stock ones. An answer is what its turn adds to the rendering of the turns
    before it with the generation prompt.

White space at the end of an answer's stretch is no label. What a template writes behind its block to end a turn is one.
White space at the beginning of a block is none where the generation prompt ends with it, and what precedes the answer
is then written as in the generation prompt: LLaVA-OneVision's template has a blank and a line break there where its
generation prompt has a line break. So training and generation begin an answer behind the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

Spans = list[tuple[int, int]]
Messages = list[dict[str, Any]]

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class ChatTemplate:
    """The chat template of a processor.

    way: how answers are found, "blocks" or "prefixes".

    Raises:
        ValueError: the processor has no template, or its blocks do not hold the answers.
    """

    def __init__(self, processor):
        self.processor = processor
        source = getattr(processor, "chat_template", None)
        source = source.get("default") if isinstance(source, dict) else source
        if not source:
            raise ValueError("data.template=chat, but the processor has no chat template; use data.template=plain")
        self.source: str = source
        self.way = "blocks" if _BLOCK.search(_COMMENT.sub("", source)) else "prefixes"
        self._opening, self._ending = self._generation_prompt(), ""
        self._ending = self._probe()

    def render(self, messages: Messages, **options) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, **options)

    def answers(self, messages: Messages) -> tuple[str, Spans]:
        """The rendering of all messages, and [start, end) of its characters for each answer, in order.

        Raises ValueError where answers cannot be located.
        """
        if self.way == "prefixes":
            return self._by_prefixes(messages)
        text, spans = self._by_blocks(messages)
        for number, (start, end) in enumerate(spans):
            if self._ending and text.startswith(self._ending, end):
                spans[number] = (start, end + len(self._ending))
        return text, spans

    def _by_prefixes(self, messages: Messages) -> tuple[str, Spans]:
        text, spans = self.render(messages), []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:index], add_generation_prompt=True)
                after = self.render(messages[: index + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise ValueError(
                        "the chat template renders earlier turns differently once later ones follow, so answers cannot "
                        "be told from the rendering; put {% generation %} and {% endgeneration %} around answers in "
                        "the checkpoint's chat_template.jinja, or use records of one question and one answer"
                    )
                spans.append(_without_blank_end(after, len(before), len(after)))
        return text, spans

    def _by_blocks(self, messages: Messages) -> tuple[str, Spans]:
        names = self.processor.tokenizer.special_tokens_map
        (text,), (found,) = render_jinja_template(
            conversations=[messages], chat_template=self.source, return_assistant_tokens_mask=True, **names
        )
        wanted = sum(message["role"] == "assistant" for message in messages)
        if len(found) != wanted:
            raise ValueError(
                f"the chat template has {len(found)} generation block(s) where the conversation has {wanted} "
                "answer(s); write one block around each answer in the checkpoint's chat_template.jinja"
            )
        text, spans = self._opened_as_prompted(text, found)
        return text, [_without_blank_end(text, start, end) for start, end in spans]

    def _generation_prompt(self) -> str:
        """What the template writes for an answer to begin, "" where it cannot be told from what precedes it."""
        asked = [{"role": "user", "content": [{"type": "text", "text": "apples ?"}]}]
        before, after = self.render(asked), self.render(asked, add_generation_prompt=True)
        return after[len(before) :] if after.startswith(before) else ""

    def _opened_as_prompted(self, text: str, spans: Spans) -> tuple[str, Spans]:
        """Blocks that begin with white space of the generation prompt, behind the generation prompt as it is."""
        header = self._opening.rstrip()
        blank = self._opening[len(header) :]
        made, found, done = "", [], 0
        for start, end in spans:
            head = text[:start].rstrip()
            blanks = len(text[start:end]) - len(text[start:end].lstrip())
            taken = next((n for n in range(blanks + 1) if text[len(head) : start + n].endswith(blank)), 0)
            if header and taken and head.endswith(header, done):
                made += text[done : len(head)] + blank
            else:
                taken = 0
                made += text[done:start]
            found.append((len(made), len(made) + end - start - taken))
            made += text[start + taken : end]
            done = end
        return made + text[done:], found

    def _probe(self) -> str:
        """What ends the turn of an answer behind its block, from a conversation of made-up words.

        Raises ValueError where an answer's stretch does not hold it, or holds something else that was said.
        """
        said = ["apples ?", "bread", "carrots ?", "dates"][: 4 if self.way == "blocks" else 2]
        text, spans = self.answers(
            [
                {"role": ("user", "assistant")[turn % 2], "content": [{"type": "text", "text": words}]}
                for turn, words in enumerate(said)
            ]
        )
        for (start, end), answer in zip(spans, said[1::2], strict=True):
            if [words for words in said if words in text[start:end]] != [answer]:
                raise ValueError(
                    f"the chat template writes {text[start:end]!r} for the answer {answer!r} to {said[0]!r}; it must "
                    "write texts that are given as parts of a turn, and have its generation blocks, where it has "
                    "some, around answers alone and outside of macros and {% set %} blocks"
                )
        return text[spans[-1][1] :].rstrip()


def _without_blank_end(text: str, start: int, end: int) -> tuple[int, int]:
    return start, max(start, len(text[:end].rstrip()))


def label_answers(
    ids: Sequence[int], places: Spans, answers: Spans, *, eos: int, ends: set[int]
) -> tuple[list[int], list[bool]]:
    """Token ids with an EOS after each answer that ends in none of `ends`, and which of them are labels.

    places: the characters of each token; answers: those of each answer, in order. A token that shares a character with
    an answer is a label. An empty answer is learnt as its EOS alone.
    """
    made: list[int] = []
    labels: list[bool] = []
    done = 0
    for start, end in answers:
        first = next((n for n in range(done, len(ids)) if places[n][1] > start), len(ids))
        last = next((n for n in range(first, len(ids)) if places[n][0] >= end), len(ids))
        made += ids[done:last]
        labels += [False] * (first - done) + [True] * (last - first)
        if last == first or ids[last - 1] not in ends:
            made.append(eos)
            labels.append(True)
        done = last
    return [*made, *ids[done:]], [*labels, *[False] * (len(ids) - done)]
