"""The words a lexical generator knows: kinds of objects, attributes, numbers, and rules for phrases.

A `Lexicon` is plain data, so another world (drawn scenes, another domain) passes its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hacl.hallucinate.english import Word, base_form, is_plural, plural, singular


@dataclass(frozen=True)
class ObjectKind:
    """One kind of object.

    name: as in a record's `objects`; group: what rules select by ("animal"); words: singular words that may be
    written; also: words that name or imply it and are only recognised; swaps: names it is plausibly taken for;
    countable: false for kinds without a usable singular (scissors, broccoli), which are never written.
    """

    name: str
    group: str = ""
    words: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    swaps: tuple[str, ...] = ()
    countable: bool = True


@dataclass(frozen=True)
class AttributeSet:
    """Values of one attribute, for some nouns.

    words: written and recognised values; alike: sets of values that are not told apart reliably; nouns: head nouns or
    object groups it applies to, None for all not in `not_nouns`; opposites: value -> values, where a free choice makes
    no sense.
    """

    name: str
    words: tuple[str, ...]
    alike: tuple[frozenset[str], ...] = ()
    nouns: frozenset[str] | None = None
    not_nouns: frozenset[str] = frozenset()
    opposites: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class PhraseRule:
    """`phrase` may become one of `replacements` (type: relation, action, attribute or event).

    landmarks: head nouns or object groups that must follow (None: any); followers: words of which one must come next
    ("" is the end of the clause); subjects: object groups, of which the last thing named before must be one; claims:
    replacement -> further words that make it true where a caption of the image has them; after: words of which
    one must stand right before, unless the subject itself does (empty: any).
    """

    type: str
    phrase: str
    replacements: tuple[str, ...]
    landmarks: frozenset[str] | None = None
    followers: frozenset[str] | None = None
    subjects: frozenset[str] | None = None
    claims: Mapping[str, frozenset[str]] = field(default_factory=dict)
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mention:
    """Words [first, stop) of a caption that name `kind`, as `word` (singular)."""

    kind: ObjectKind
    first: int
    stop: int
    word: str
    plural: bool


@dataclass(frozen=True)
class Lexicon:
    """Everything a lexical generator writes and recognises.

    word_swaps: word -> words, for kinds that annotations do not tell apart (man, woman); hypernyms: word -> names that
    it may stand for ("vehicle"); settings: word -> names to expect there ("bathroom"), which count as present only in
    images without annotation; scenes: sets of names that occur together; numbers: word -> value; vague_numbers:
    phrase -> least plausible value; selects: word right before a noun phrase -> names that may follow it; agents: word
    soon after a noun -> names that may do or be that; adjectives: words allowed between determiner and noun;
    followers: words allowed after a noun that may be exchanged; alike: sets of words of which one makes the others
    true; insertions: group (or "default") -> phrases with {np} for the end of a
    caption; end_nouns: nouns a caption may end in for that; noun_groups: (type, singular nouns of which at most one
    fits a place); prepositions: preposition -> what it may become; verb_groups: verbs of one frame and form;
    third_persons: "sitting" -> "sits"; modifiers: (words of which one says what kind of thing a noun is, nouns that all
    of them fit).
    """

    objects: Mapping[str, ObjectKind]
    attributes: Sequence[AttributeSet] = ()
    phrases: Sequence[PhraseRule] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    vague_numbers: Mapping[str, int] = field(default_factory=dict)
    word_swaps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hypernyms: Mapping[str, frozenset[str]] = field(default_factory=dict)
    settings: Mapping[str, frozenset[str]] = field(default_factory=dict)
    scenes: Sequence[frozenset[str]] = ()
    selects: Mapping[str, frozenset[str]] = field(default_factory=dict)
    agents: Mapping[str, frozenset[str]] = field(default_factory=dict)
    adjectives: frozenset[str] = frozenset()
    followers: frozenset[str] = frozenset()
    alike: Sequence[frozenset[str]] = ()
    insertions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    end_nouns: frozenset[str] = frozenset()
    noun_groups: Sequence[tuple[str, tuple[str, ...]]] = ()
    prepositions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verb_groups: Sequence[tuple[str, ...]] = ()
    third_persons: Mapping[str, str] = field(default_factory=dict)
    modifiers: Sequence[tuple[tuple[str, ...], frozenset[str]]] = ()

    @cached_property
    def _groups(self) -> dict[str, list[tuple[str, tuple[str, ...], bool]]]:
        table: dict[str, list[tuple[str, tuple[str, ...], bool]]] = {}
        for kind, group in self.noun_groups:
            for word in group:
                table.setdefault(word, []).append((kind, group, False))
                if plural(word) != word:
                    table.setdefault(plural(word), []).append((kind, group, True))
        return table

    @cached_property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        table: dict[str, set[str]] = {}
        for word, entries in self._groups.items():
            table.setdefault(word, set()).update(
                f"#{self.noun_groups.index((kind, group))}" for kind, group, _ in entries
            )
        for key, named in self._names.items():
            table.setdefault(" ".join(key), set()).update(f"#{kind.group}" for kind, _, _ in named)
        return {word: tuple(sorted(classes)) for word, classes in table.items()}

    def classes_of(self, noun: str) -> tuple[str, ...]:
        """Names of the classes a noun (any number) belongs to: its groups and those of its kind."""
        return self._classes.get(noun, ())

    def groups_of(self, word: str) -> list[tuple[str, tuple[str, ...], bool]]:
        """(type, group, plural?) of each noun group that has the word."""
        return self._groups.get(word, [])

    @cached_property
    def known_verbs(self) -> frozenset[str]:
        """Every verb of a frame, in any form."""
        return frozenset(verb for group in self.verb_groups for verb in group)

    @cached_property
    def plural_verbs(self) -> frozenset[str]:
        """Of them, those that agree with several things."""
        return frozenset(base_form(third) for third in self.third_persons.values()) & self.known_verbs

    @cached_property
    def transitive_verbs(self) -> frozenset[tuple[str, ...]]:
        """The frames whose verbs need an object."""
        return frozenset(group for group in self.verb_groups if {"holding", "holds", "hold"} & set(group))

    @cached_property
    def _rules(self) -> dict[str, list[tuple[int, PhraseRule]]]:
        table: dict[str, list[tuple[int, PhraseRule]]] = {}
        for place, rule in enumerate(self.phrases):
            table.setdefault(rule.phrase.split()[0], []).append((place, rule))
        return table

    def rules_of(self, words: Iterable[str]) -> list[PhraseRule]:
        """The phrase rules that begin with one of some different words, in their order."""
        found = [entry for word in words for entry in self._rules.get(word, ())]
        return [rule for _, rule in sorted(found, key=lambda entry: entry[0])]

    @cached_property
    def _doings(self) -> dict[str, str]:
        thirds = {third: ing for ing, third in self.third_persons.items()}
        return {base_form(third): ing for third, ing in thirds.items()} | thirds

    def doing(self, verb: str) -> str:
        """ "sits" or "sit" -> "sitting", any other word as it is."""
        return self._doings.get(verb, verb)

    @cached_property
    def _names(self) -> dict[tuple[str, ...], list[tuple[ObjectKind, str, bool]]]:
        """Words of a mention -> [(kind, singular, plural?)], kinds that write the word first."""
        table: dict[tuple[str, ...], list[tuple[ObjectKind, str, bool]]] = {}
        for writes in (True, False):
            for kind in self.objects.values():
                for word in kind.words if writes else kind.also:
                    table.setdefault(tuple(word.split()), []).append((kind, word, is_plural(word)))
                    if plural(word) != word:
                        table.setdefault(tuple(plural(word).split()), []).append((kind, word, True))
        return table

    @cached_property
    def _longest(self) -> int:
        return max((len(key) for key in self._names), default=0)

    def mentions(self, words: Sequence[Word]) -> list[Mention]:
        """Objects named in a caption, left to right, at every word the longest name."""
        found, at = [], 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                if entries := self._names.get(_key(words[at : at + length])):
                    kind, word, many = entries[0]
                    found.append(Mention(kind, at, at + length, word, many))
                    at += length
                    break
            else:
                at += 1
        return found

    def named(self, words: Sequence[Word]) -> set[str]:
        """Every object name that some words of a text may stand for: more than it surely says."""
        found: set[str] = set()
        for at in range(len(words)):
            for length in range(1, min(self._longest, len(words) - at) + 1):
                found.update(kind.name for kind, _, _ in self._names.get(_key(words[at : at + length]), ()))
            found.update(self.hypernyms.get(singular(words[at].text), ()))
        return found

    def expected(self, words: Sequence[Word]) -> set[str]:
        """Names to expect in the places a text speaks of."""
        return {name for word in words for name in self.settings.get(singular(word.text), ())}

    @cached_property
    def _company(self) -> dict[str, frozenset[str]]:
        names = {name for scene in self.scenes for name in scene}
        return {name: frozenset().union(*(scene for scene in self.scenes if name in scene)) for name in names}

    def company_of(self, name: str) -> frozenset[str]:
        """Names that occur in a scene with `name`, itself included."""
        return self._company.get(name, frozenset())

    @cached_property
    def _same(self) -> dict[str, frozenset[str]]:
        return {}

    def same(self, word: str) -> frozenset[str]:
        """The word, its number forms, and the words that make it true."""
        if word not in self._same:
            forms = {word, plural(word), singular(word)}
            for group in self.alike:
                if group & forms:
                    forms |= group
            if len(self._same) > 100_000:
                self._same.clear()
            self._same[word] = frozenset(forms)
        return self._same[word]

    def is_a(self, noun: str, allowed: frozenset[str]) -> bool:
        """Whether a noun (any number) is in `allowed`, itself or by the group of its kind."""
        single = singular(noun)
        if noun in allowed or single in allowed:
            return True
        found = self._names.get(tuple(noun.split()), ())
        return any(k.group in allowed or (k.name in allowed and word in k.words) for k, word, _ in found)

    def names_of(self, word: str) -> frozenset[str]:
        """Every object name a (singular) word may stand for: "bike" -> bicycle, motorcycle."""
        return frozenset(kind.name for kind, _, _ in self._names.get(tuple(word.split()), ()))


def _key(words: Sequence[Word]) -> tuple[str, ...]:
    return tuple(word.text.removesuffix("'s") for word in words)
