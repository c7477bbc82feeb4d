"""What is known about one image: everything a hallucinated caption must not happen to say truly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hacl.data.records import Record
from hacl.hallucinate.cooccurrence import Cooccurrence
from hacl.hallucinate.english import Word, words_of
from hacl.hallucinate.lexicon import Lexicon, Mention

if TYPE_CHECKING:
    from hacl.hallucinate.phrase_bank import PhraseBank
    from hacl.hallucinate.tagger import SpacyTagger


@dataclass(frozen=True)
class Candidate:
    """A possible hallucinated caption.

    adds: object names the text newly claims; claims: words it newly claims (any of them elsewhere makes it true);
    phrase: what was written; weight: relative preference within its type; slot: [start, end) characters of the
    original that were exchanged.
    """

    type: str
    text: str
    span: tuple[int, int]
    slot: tuple[int, int]
    phrase: str
    adds: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    weight: float = 1.0


@dataclass(frozen=True)
class ImageContext:
    """One caption of a record, analysed, with what all captions and annotations of the image say.

    present: names that are, or may be, in the image: annotated in `objects` or in `extra["chair_objects"]`, or named
    or hinted at by any caption or answer; in images without annotation also what the setting suggests.
    """

    record: Record
    index: int
    lexicon: Lexicon
    cooccurrence: Cooccurrence | None = None
    bank: PhraseBank | None = None
    tagger: SpacyTagger | None = None

    @property
    def text(self) -> str:
        return self.record.captions[self.index]

    @cached_property
    def words(self) -> list[Word]:
        return words_of(self.text)

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return () if self.tagger is None else self.tagger.tags(self.text, self.words)

    def is_tagged(self, at: int, parts: frozenset[str]) -> bool | None:
        """Whether the tagger has word `at` as one of these parts of speech, None without a tagger."""
        return self._tags[at] in parts if self.tagger is not None else None

    @cached_property
    def mentions(self) -> list[Mention]:
        return self.lexicon.mentions(self.words)

    @cached_property
    def texts(self) -> list[str]:
        answers = [turn.text for turn in self.record.conversation if turn.role == "assistant"]
        return [*self.record.captions, *answers]

    @cached_property
    def text_words(self) -> list[list[Word]]:
        return [words_of(text) for text in self.texts]

    @cached_property
    def said(self) -> frozenset[str]:
        """Every word of every text about the image."""
        return frozenset(word.text for words in self.text_words for word in words)

    @cached_property
    def others_said(self) -> list[frozenset[str]]:
        """Words of each caption of the image."""
        return [frozenset(word.text for word in words_of(text)) for text in self.record.captions]

    @cached_property
    def described(self) -> dict[str, set[str]]:
        """Word -> the words that stand right before it in any caption of the image."""
        found: dict[str, set[str]] = {}
        for words in self.text_words:
            for before, word in zip(words, words[1:], strict=False):
                found.setdefault(word.text, set()).add(before.text)
        return found

    @cached_property
    def annotated(self) -> frozenset[str]:
        listed = self.record.extra.get("chair_objects")
        names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        return frozenset((*names, *(self.record.objects or {})))

    @cached_property
    def present(self) -> frozenset[str]:
        names = set(self.annotated)
        for words in self.text_words:
            names |= self.lexicon.named(words)
            if not self.annotated:
                names |= self.lexicon.expected(words)
        return frozenset(names)

    def count(self, name: str) -> int | None:
        """Annotated number of an object, None where nothing is known about numbers."""
        return None if self.record.objects is None else self.record.objects.get(name)

    def scene_share(self, name: str) -> float:
        """Share of the things seen, people apart, that are photographed together with `name` (0 to 1)."""
        others = self._seen - {"person"} or self._seen
        if not others:
            return 0.0
        company = self.lexicon.company_of(name)
        return sum(other in company for other in others) / len(others)

    def suits(self, name: str) -> float:
        """Relative plausibility of an absent object in this image."""
        share = self.scene_share(name)
        known = 0.3 if self.cooccurrence is None else 0.1 + self.cooccurrence.weight(name, self._seen)
        return 0.02 + share * known

    @cached_property
    def _seen(self) -> set[str]:
        return set(self.annotated) or set(self.lexicon.named(self.words))
