"""Turn text into the token sequences of a training step: generation sequences with labels, and contrastive roots.

Generation sequence, template `plain` (LLaVA's stage-1 form, arXiv 2304.08485 section 4.2): BOS, image tokens, prompt
and a line break, answer, EOS, where answer and EOS are labels. Template `chat`: the processor's chat template, whose
labels `hacl.data.labels` finds. Where a template ends answers without a token for it, EOS is written after each.
Contrastive root: BOS, text, EOS; the text is truncated, never the EOS, and lengths are carried, never searched.
Special tokens come from templates alone: in a record's text they are text (`hacl.data.literal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hacl.data.image_formats import ImageText
from hacl.data.labels import ChatTemplate, label_answers
from hacl.data.literal import LiteralText

IMAGE_MARK = "<image>"


@dataclass
class EncodedSequence:
    """One root of the packed step.

    ids and is_label have equal length (T); `is_label[t]` says that token t is predicted (by the state at t-1).
    image_spans are [start, end) of all that is written for each image, in the order of the images: its image tokens,
    and the markers that some families write around and between them. cut_labels: how many the limit has cut off.
    islands: see `ImageText.islands`; empty where attention is causal.
    """

    ids: list[int]
    is_label: list[bool]
    image_spans: list[tuple[int, int]] = field(default_factory=list)
    cut_labels: int = 0
    islands: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicted(self) -> list[int]:
        """Places of the labels that a state comes before: all, but for a first token, which nothing predicts."""
        return [t for t, is_label in enumerate(self.is_label) if t and is_label]

    def cut(self, end: int, *following: int) -> EncodedSequence:
        """The first `end` tokens, of whole images, and others behind them, none of them a label."""
        ids, spans = [*self.ids[:end], *following], [span for span in self.image_spans if span[1] <= end]
        islands = [*self.islands[:end], *[-1] * len(following)] if self.islands else []
        return EncodedSequence(ids, [*self.is_label[:end], *[False] * len(following)], spans, islands=islands)


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
        self.chat = ChatTemplate(processor) if template == "chat" else None
        self.literal = LiteralText(self.tokenizer)
        self.template = template
        self.prompt = prompt
        self.max_length = max_length
        self.max_caption_length = max_caption_length
        self.images = ImageText(processor)
        if template == "chat" and self.images.format.before_bos:
            raise ValueError(
                f"{type(processor).__name__} writes an image before the beginning of the text and knows one prompt and "
                "one answer, which no chat template does; set data.template=plain"
            )
        self.image_token_id = self.images.token_id
        self.num_image_tokens = self.images.num_tokens
        self.bos = self.images.format.bos(processor)
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
        islands = self.images.islands(ids, len(written))
        return EncodedSequence(ids, [False] * len(ids), [(0, len(written))], islands=islands)

    # Generation sequences

    def caption_sequence(
        self, caption: str, *, with_image: bool = True, answer: bool = True, image: Sequence[int] | None = None
    ) -> EncodedSequence:
        """The generation sequence that answers `prompt` with `caption`; `answer=False` leaves out the answer.

        image: tokens of its image; needed where they depend on the image's shape.
        """
        if self.template == "plain":
            before, after = self.images.format.around if with_image else ("", "")
            head, spans = [*self.bos, *self._ids(before)], []
            if with_image:
                written = self.images.ids() if image is None else image
                start = 0 if self.images.format.before_bos else len(head)
                head[start:start] = written
                spans = [(start, start + len(written))]
            head += self._ids(f"{after}{self.prompt}\n" if self.prompt else after)
            tail = [*self._ids(caption), *self.eos] if answer else []
            ids, labels = head + tail, [False] * len(head) + [True] * len(tail)
            return self._truncate(EncodedSequence(ids, labels, spans))
        turns = [("user", f"{IMAGE_MARK}\n{self.prompt}" if with_image else self.prompt), ("assistant", caption)]
        return self.conversation_sequence(turns if answer else turns[:1], None if image is None else [image])

    def conversation_sequence(
        self, turns: list[tuple[str, str]], images: Sequence[Sequence[int]] | None = None
    ) -> EncodedSequence:
        """Render (role, text) turns with the chat template; labels are its answers (`hacl.data.labels`).

        `<image>` in a text of the user marks an image, in an answer it is text; images: tokens of each, needed where
        they depend on its shape. Raises ValueError where answers cannot be located in the rendering.
        """
        messages = [{"role": role, "content": self._content(role, text)} for role, text in turns]
        rendered, answers = self.images.spaced(*self.chat.answers(messages))
        ids, places = self.literal.encode(rendered)
        ids, labels = label_answers(ids, places, answers, eos=self.eos[0], ends=self._ends)
        if turns[-1][0] == "assistant" and any(labels):  # what follows the last answer is white space
            end = len(labels) - labels[::-1].index(True)
            ids, labels = ids[:end], labels[:end]
        if self.bos and ids[:1] != self.bos:
            ids, labels = self.bos + ids, [False, *labels]
        return self._truncate(self._expand_images(ids, labels, images))

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
            if sequence.image_spans and sequence.image_spans[-1][1] == len(sequence.ids):
                written = self.images.format.written_behind_another(written)
            sequence.image_spans.append((len(sequence.ids), len(sequence.ids) + len(written)))
            sequence.ids += written
            sequence.is_label += [False] * len(written)
            place += len(mark)
        return sequence

    def _truncate(self, sequence: EncodedSequence) -> EncodedSequence:
        if sequence.image_spans and sequence.image_spans[-1][1] > self.max_length:
            raise ValueError(
                f"data.max_length={self.max_length} would cut an image, whose tokens end at "
                f"{sequence.image_spans[-1][1]}; raise data.max_length, or let the processor take smaller images or "
                "fewer tiles (size, max_pixels or tiling in preprocessor_config.json of the checkpoint)"
            )
        sequence.cut_labels = sum(sequence.is_label[self.max_length :])
        sequence.ids = sequence.ids[: self.max_length]
        sequence.is_label = sequence.is_label[: self.max_length]
        labels = sequence.is_label
        sequence.islands = self.images.islands(sequence.ids, labels.index(True) if True in labels else len(labels))
        return sequence

    @cached_property
    def image_prefix(self) -> list[int]:
        """The token ids before an image that begins a conversation: what a template writes ahead of every image.

        Raises ValueError where they depend on the question.
        """
        if self.template == "plain":
            own = self.images.format
            return [] if own.before_bos else [*self.bos, *self._ids(own.around[0])]
        asked = ("what ?", "where is it ?")
        mark = [self.images.mark_ids]
        found = [self.conversation_sequence([("user", f"{IMAGE_MARK}\n{words}")], mark) for words in asked]
        first, second = (sequence.ids[: sequence.image_spans[0][0]] for sequence in found)
        if first != second:
            raise ValueError(
                "the chat template writes the question before the image, so an image state read in place would depend "
                "on it; set objective.form=strict"
            )
        return first

    @cached_property
    def _ends(self) -> set[int]:
        """Tokens that end a turn where a template writes them last: EOS, and special tokens that do nothing else."""
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        others = (self.tokenizer.unk_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id)
        return special.difference(others, [self.image_token_id]) | set(self.eos)

    def _content(self, role: str, text: str) -> list[dict]:
        """The parts of a turn; of the user's, `<image>` marks become image entries. Special tokens in texts are marked.

        Raises ValueError where the texts around an image mark make a special token together.
        """
        if role == "assistant":
            return [{"type": "text", "text": self.literal.mark(text)}]
        parts: list[dict] = []
        pieces = text.split(IMAGE_MARK)
        if self.literal.count("".join(pieces)) > sum(map(self.literal.count, pieces)):
            raise ValueError(f"the texts around an {IMAGE_MARK} mark make a special token together; change them")
        for index, piece in enumerate(pieces):
            if index:
                parts.append({"type": "image"})
            if piece.strip():
                parts.append({"type": "text", "text": self.literal.mark(piece.strip("\n") if index else piece)})
        return parts

    def _ids(self, text: str) -> list[int]:
        return self.literal.ids(text)
