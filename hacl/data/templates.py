"""Turn text into the token sequences of a training step: generation sequences with labels, and contrastive roots.

Generation sequence, template `plain` (LLaVA's stage-1 form, arXiv 2304.08485 section 4.2): BOS, image tokens, prompt
and a line break, answer, EOS, where answer and EOS are labels. Template `chat`: the processor's chat template; a token
is a label when it overlaps the text an assistant turn adds to the rendering (white space at its end aside), found from
character offsets and never by splitting strings. Where a template ends answers without EOS, one is written after each.
Contrastive root: BOS, text, EOS; the text is truncated, never the EOS, and lengths are carried, never searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hacl.data.image_formats import ImageText

IMAGE_MARK = "<image>"


@dataclass
class EncodedSequence:
    """One root of the packed step.

    ids and is_label have equal length (T); `is_label[t]` says that token t is predicted (by the state at t-1).
    image_spans are [start, end) of all that is written for each image, in the order of the images: its image tokens,
    and the markers that some families write around and between them.
    """

    ids: list[int]
    is_label: list[bool]
    image_spans: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


class SequenceEncoder:
    """Encodes texts with one processor.

    template: "plain" or "chat"; prompt: what the user asks for a caption; max_length: tokens of a generation sequence,
    cut from the right but never inside the image; max_caption_length: tokens of a contrastive root with BOS and EOS.

    images: what the processor writes for an image. Where that depends on the image's shape, sequences with images are
    made for the tokens of these images (`images.ids(size)`); elsewhere they need not be given.
    """

    def __init__(self, processor, *, template: str, prompt: str, max_length: int, max_caption_length: int):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ValueError(f"{type(self.tokenizer).__name__} gives no character offsets; use a fast tokenizer")
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, which ends every caption here")
        if template not in ("plain", "chat"):
            raise ValueError(f"data.template={template!r}: expected 'plain' or 'chat'")
        if template == "chat" and not getattr(processor, "chat_template", None):
            raise ValueError("data.template=chat, but the processor has no chat template; use data.template=plain")
        self.template = template
        self.prompt = prompt
        self.max_length = max_length
        self.max_caption_length = max_caption_length
        self.images = ImageText(processor)
        self.image_token_id = self.images.token_id
        self.num_image_tokens = self.images.num_tokens
        self.bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        self.eos = [self.tokenizer.eos_token_id]

    # Contrastive roots

    def root(self, text: str) -> list[int]:
        """BOS, text, EOS of at most `max_caption_length` tokens. The text span is [len(bos), len - 1)."""
        content = self._ids(text)[: self.max_caption_length - len(self.bos) - 1]
        return [*self.bos, *content, *self.eos]

    def root_span(self, ids: list[int], pool: str) -> tuple[int, int]:
        """Which tokens of a root its representation is read from: the EOS (`last`) or the text tokens (`mean`)."""
        if pool == "last" or len(ids) - 1 <= len(self.bos):
            return len(ids) - 1, len(ids)
        return len(self.bos), len(ids) - 1

    def strict_image_root(self, image: Sequence[int] | None = None) -> EncodedSequence:
        """What is written for an image, and EOS, no BOS and no prompt: the image sequence of the released HACL code."""
        written = self.images.ids() if image is None else image
        ids = [*written, *self.eos]
        return EncodedSequence(ids, [False] * len(ids), [(0, len(written))])

    # Generation sequences

    def caption_sequence(
        self, caption: str, *, with_image: bool = True, answer: bool = True, image: Sequence[int] | None = None
    ) -> EncodedSequence:
        """The generation sequence that answers `prompt` with `caption`; `answer=False` leaves out the answer.

        image: tokens of its image; needed where they depend on the image's shape.
        """
        if self.template == "plain":
            head = [*self.bos, *((self.images.ids() if image is None else image) if with_image else [])]
            spans = [(len(self.bos), len(head))] if with_image else []
            head += self._ids(f"{self.prompt}\n" if self.prompt else "")
            tail = [*self._ids(caption), *self.eos] if answer else []
            ids, labels = head + tail, [False] * len(head) + [True] * len(tail)
            return self._truncate(EncodedSequence(ids, labels, spans))
        turns = [("user", f"{IMAGE_MARK}\n{self.prompt}" if with_image else self.prompt), ("assistant", caption)]
        return self.conversation_sequence(turns if answer else turns[:1], None if image is None else [image])

    def conversation_sequence(
        self, turns: list[tuple[str, str]], images: Sequence[Sequence[int]] | None = None
    ) -> EncodedSequence:
        """Render (role, text) turns with the chat template; labels are what the assistant turns add.

        `<image>` in a text marks an image; images: tokens of each, needed where they depend on its shape. Raises
        ValueError when a rendering of the first turns is not a prefix of the rendering of all turns, because labels
        could then not be located.
        """
        messages = [{"role": role, "content": _content(text)} for role, text in turns]
        rendered = self._render(messages)
        answers = []
        for index, (role, _) in enumerate(turns):
            if role == "assistant":
                before = self._render(messages[:index], add_generation_prompt=True)
                after = self._render(messages[: index + 1])
                if not (after.startswith(before) and rendered.startswith(after)):
                    raise ValueError("the chat template renders earlier turns differently once later ones follow")
                answers.append((len(before), len(after.rstrip())))
        encoded = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        labels: list[bool] = []
        for token, place in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            answer = _overlapping(answers, place)
            while answers and answer != answers[0] and place[0] >= answers[0][1]:
                self._close_answer(ids, labels)
                answers.pop(0)
            ids.append(token)
            labels.append(answer is not None)
        if answers:
            self._close_answer(ids, labels)
        if turns[-1][0] == "assistant" and any(labels):  # what follows the last answer is white space
            end = len(labels) - labels[::-1].index(True)
            ids, labels = ids[:end], labels[:end]
        if self.bos and ids[:1] != self.bos:
            ids, labels = self.bos + ids, [False, *labels]
        return self._truncate(self._expand_images(ids, labels, images))

    def _close_answer(self, ids: list[int], labels: list[bool]) -> None:
        """Write the EOS that a model must learn to say where the template writes none after an answer."""
        if ids[-1:] != self.eos and labels[-1:] == [True]:
            ids += self.eos
            labels.append(True)

    def _expand_images(
        self, ids: list[int], labels: list[bool], images: Sequence[Sequence[int]] | None
    ) -> EncodedSequence:
        """Write the tokens of the images over their marks; a mark beyond the images given stays as it is."""
        mark, sequence, place = self.images.mark_ids, EncodedSequence([], []), 0
        while place < len(ids):
            if not mark or ids[place : place + len(mark)] != mark:
                sequence.ids.append(ids[place])
                sequence.is_label.append(labels[place])
                place += 1
                continue
            number = len(sequence.image_spans)
            written = self.images.ids() if images is None else images[number] if number < len(images) else mark
            sequence.image_spans.append((len(sequence.ids), len(sequence.ids) + len(written)))
            sequence.ids += written
            sequence.is_label += [False] * len(written)
            place += len(mark)
        return sequence

    def _truncate(self, sequence: EncodedSequence) -> EncodedSequence:
        if sequence.image_spans and sequence.image_spans[-1][1] > self.max_length:
            raise ValueError(
                f"data.max_length={self.max_length} would cut an image, whose tokens end at "
                f"{sequence.image_spans[-1][1]}; raise data.max_length"
            )
        sequence.ids = sequence.ids[: self.max_length]
        sequence.is_label = sequence.is_label[: self.max_length]
        return sequence

    def _render(self, messages: list[dict], **options) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, **options)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _overlapping(spans: list[tuple[int, int]], place: tuple[int, int]) -> tuple[int, int] | None:
    """The span that shares a character with `place`."""
    return next((span for span in spans if place[0] < span[1] and place[1] > span[0] and place[1] > place[0]), None)


def _content(text: str) -> list[dict]:
    """`<image>` marks become image entries, the rest text entries, in order."""
    parts: list[dict] = []
    for index, piece in enumerate(text.split(IMAGE_MARK)):
        if index:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip("\n") if index else piece})
    return parts
