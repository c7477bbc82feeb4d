"""WordNet lemmas by Penn tag, as CHAIR's wordnet dialect uses them: from WordNet files, or for its own words without.

The lemma is the shortest of the forms that Morphy finds (nltk ``WordNetLemmatizer``; rules and exception lists of
WordNet 3.0, Princeton University, WordNet licence). Without the files a table of the words that CHAIR looks up is used;
it gives the lemmas of WordNet 3.0 for every form that can end in one of these words.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Protocol

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.chair_words import JOINED, OBJECT_OF

NOUN, VERB, ADJECTIVE, ADVERB = "nvar"
FILES = {NOUN: "noun", VERB: "verb", ADJECTIVE: "adj", ADVERB: "adv"}
# Ending of an inflected form -> ending of the lemma (WordNet, morphy(7WN)).
_ENDINGS = {
    NOUN: "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    VERB: "s: ies:y es:e es: ed:e ed: ing:e ing:",
    ADJECTIVE: "er: est: er:e est:e",
    ADVERB: "",
}
ENDINGS = {kind: tuple(tuple(entry.split(":")) for entry in text.split()) for kind, text in _ENDINGS.items()}


def part_of_speech(tag: str) -> str:
    """Penn tag -> part of speech; whatever is no adjective, verb or adverb is taken for a noun, as in the scripts."""
    return {"J": ADJECTIVE, "V": VERB, "R": ADVERB}.get(tag[:1], NOUN)


class Lemmatizer(Protocol):
    """The lemma of a lower-case word tagged ``tag`` (Penn)."""

    def __call__(self, word: str, tag: str) -> str: ...


class WordNetLemmas:
    """Lemmas from lists of lemmas and exceptions per part of speech.

    Args:
        lemmas: part of speech -> known lemmas.
        exceptions: part of speech -> irregular form -> its lemmas in order.
    """

    def __init__(self, lemmas: Mapping[str, frozenset[str]], exceptions: Mapping[str, Mapping[str, tuple[str, ...]]]):
        self.lemmas, self.exceptions = lemmas, exceptions
        self._lemma = lru_cache(maxsize=200_000)(self._find)

    @classmethod
    def from_data(cls, folder: Path) -> WordNetLemmas:
        """Read ``corpora/wordnet`` (or wordnet.zip) of an NLTK data folder, or a folder that holds index.noun itself.

        Raises:
            FileNotFoundError: no WordNet there. InputError: a part of it is missing.
        """
        read = _reader(folder)
        lemmas, exceptions = {}, {}
        for kind, name in FILES.items():
            lines = read(f"index.{name}").splitlines()
            lemmas[kind] = frozenset(line.split(" ", 1)[0] for line in lines if line and not line.startswith(" "))
            rows = (line.split() for line in read(f"{name}.exc").splitlines())
            exceptions[kind] = {row[0]: tuple(row[1:]) for row in rows if row}
        return cls(lemmas, exceptions)

    def __call__(self, word: str, tag: str) -> str:
        return self._lemma(word, part_of_speech(tag))

    def _find(self, word: str, kind: str) -> str:
        forms = self.exceptions[kind].get(word)
        if forms is None:
            forms = tuple(word[: len(word) - len(old)] + new for old, new in ENDINGS[kind] if word.endswith(old))
        known = [form for form in (word, *forms) if form in self.lemmas[kind]]
        return min(known, key=len) if known else word


def _reader(folder: Path) -> Callable[[str], str]:
    """What reads a file of the WordNet that is below a folder."""
    for place in (folder / "corpora" / "wordnet", folder / "wordnet", folder):
        if (place / "index.noun").is_file():
            return partial(_read_file, place)
    for archive in (folder / "corpora" / "wordnet.zip", folder / "wordnet.zip"):
        if archive.is_file():
            return partial(_read_member, archive)
    raise FileNotFoundError(
        f"{folder}: no WordNet (corpora/wordnet/index.noun or corpora/wordnet.zip); "
        "get it with nltk.downloader wordnet, or from the Debian package wordnet-base"
    )


def _read_file(place: Path, name: str) -> str:
    if not (place / name).is_file():
        raise InputError(f"{place}: no {name}; a whole WordNet has index and .exc files for four parts of speech")
    return (place / name).read_text(encoding="utf-8")


def _read_member(archive: Path, name: str) -> str:
    with zipfile.ZipFile(archive) as file:
        try:
            return file.read(f"wordnet/{name}").decode()
        except KeyError as error:
            raise InputError(f"{archive}: no wordnet/{name}; fetch the archive again") from error


# Forms of CHAIR's words whose lemma in WordNet 3.0 is not what the endings and CHAIR's words alone would give:
# "vases" is the plural of "vas", a tagged verb "planes" comes from "plan", "men" is a noun of its own.
_OVERRIDES = {
    NOUN: "men:men sports:sport vases:vas",
    VERB: "bore:bore dining:din kited:kit kites:kit kiting:kit moped:mop parking:park planed:plan planes:plan "
    "planing:plan plated:plat plates:plat plating:plat potted:pot scissors:scissor skies:sky sports:sport stove:stave "
    "taxis:taxis wined:win wines:win wining:win",
    ADJECTIVE: "drier:dry homer:homer planer:planer signaler:signaler signer:signer solider:solid",
    ADVERB: "",
}
# Irregular forms of CHAIR's words in WordNet's exception lists.
_IRREGULAR = {
    NOUN: "buffaloes:buffalo busses:bus calves:calf children:child flamingoes:flamingo geese:goose "
    "grandchildren:grandchild knives:knife mice:mouse oxen:ox pocketknives:pocketknife taxies:taxi thieves:thief",
    VERB: "babied:baby batted:bat batting:bat bed:bed bedded:bed bedding:bed born:bear borne:bear bulldogging:bulldog "
    "catted:cat catting:cat copped:cop copping:cop cubbed:cub cubbing:cub cupped:cup cupping:cup dogged:dog "
    "dogging:dog ferried:ferry jetted:jet jetting:jet kidded:kid kidding:kid lit:light manned:man manning:man "
    "pupped:pup pupping:pup rammed:ram ramming:ram sank:sink shipped:ship shipping:ship "
    "signalled:signal signalling:signal ski'd:ski stopped:stop stopping:stop subbed:sub subbing:sub sunk:sink "
    "sunken:sink taxying:taxi trafficked:traffic trafficking:traffic tying:tie",
    ADJECTIVE: "camper:camper foreigner:foreigner hotter:hot hottest:hot huskier:husky huskiest:husky player:player "
    "pottier:potty pottiest:potty teenager:teenager",
    ADVERB: "",
}
# CHAIR's words that WordNet 3.0 does not have as nouns, and those that it has as verbs and adjectives.
_NO_NOUNS = (
    "biker bluejay brindle children coworker firetruck glas hairdryer hot knive lenovo longboard macbook netbook "
    "paddleboat pitbull potted riverboat sailboard shortboard skimboard skis smartphone solider sports stovetop "
    "teddybear televison"
)
_VERBS = (
    "air automobile baby backpack ball barge bat bear bed bench bicycle bike bird boat book bottle bow bowl "
    "buffalo bull bulldog bus cab cake canoe case cat chair clock cocker cop couch cow crow cub cup cycle doctor "
    "dog duck falcon father ferry fire foal fork fowl glass goose groom gull guy home horse hound jet kayak kid "
    "kite kitten knife lamb light man meter microwave monitor mother motor motorbike motorboat motorcycle mouse "
    "officer parrot people phone plane plant plate pup purse quail racket ram raven sandwich seaplane seat ship "
    "sign signal sink skateboard ski snowboard soldier spoon stool stop sub suit surfboard swan table taxi "
    "telephone tie track traffic train truck unicycle wine yacht"
)
_ADJECTIVES = (
    "adult animal brindle caller canine equine feline female home hot husky jet light locomotive male mobile motor "
    "orange patient plane potted potty remote sign signal tabby umbrella"
)


@cache
def chair_lemmas() -> WordNetLemmas:
    """Lemmas for the words that CHAIR looks up, without WordNet's files."""
    words = {word for name in (*OBJECT_OF, *JOINED) for word in name.split()}
    lemmas = {NOUN: words - set(_NO_NOUNS.split()), VERB: _VERBS.split(), ADJECTIVE: _ADJECTIVES.split(), ADVERB: ()}
    exceptions = {}
    for kind in FILES:
        exceptions[kind] = dict(entry.split(":") for entry in f"{_IRREGULAR[kind]} {_OVERRIDES[kind]}".split())
    return _ChairLemmas(
        {kind: frozenset(names) for kind, names in lemmas.items()},
        {kind: {form: (lemma,) for form, lemma in table.items()} for kind, table in exceptions.items()},
    )


class _ChairLemmas(WordNetLemmas):
    """The table's exceptions are final: they name lemmas outside of the words that the table knows."""

    def _find(self, word: str, kind: str) -> str:
        fixed = self.exceptions[kind].get(word)
        return fixed[0] if fixed else super()._find(word, kind)
