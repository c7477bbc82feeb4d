"""Singular of an English noun by the rules of ``pattern.en.singularize``, right or wrong, without that package.

CHAIR's first script sends every token through that function, so its errors belong to the published figures: "bus" ->
"bu", "glass" -> "glas", "ties" -> "ty", "women" -> "woman". Rules and word lists after pattern 3.6
(clips/pattern, BSD-3; the rules are those of Bermi Ferrer's inflector, MIT), arranged anew; equal to PatternLite 3.6 on
every word tried (docs/chair_pope_data.md).
"""

from __future__ import annotations

import re

# A word is left alone if one of these ends with it ("us" is not, "ss" is: "swiss").
_UNCHANGED = (
    "bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn eland "
    "elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes mackerel measles "
    "mews mumps news pincers pliers proceedings rabies salmon scissors series shears species swine swiss trout tuna "
    "whiting wildebeest "
    "advice bread butter cheese electricity equipment fruit furniture garbage gravel happiness information ketchup "
    "knowledge love luggage mathematics mayonnaise meat mustard news progress research rice sand software "
    "understanding water"
)
_TAILS = frozenset(word[start:] for word in _UNCHANGED.split() for start in range(len(word)))
# Plurals of words in -ie are recognised and then returned as they are.
_IE_PLURALS = tuple(
    stem + "ies"
    for stem in (
        "alerg aunt bean bird bog bomb coll cook cut dogg eyr freeb goon group hank hipp hoag hott ind junk ladd laram "
        "linger mean newb night ^p ^t old pix quick rever rook soft sort stool sweet tech tough valkyr vegg ween yupp "
        "zomb"
    ).split()
)
# Ending -> what it becomes; the first that fits.
_IRREGULAR = (
    "atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child corpora:corpus corpuses:corpus "
    "ephemerides:ephemeris feet:foot ganglia:ganglion geese:goose genera:genus genii:genie graffiti:graffito "
    "helves:helve kine:cow leaves:leaf loaves:loaf men:man mongooses:mongoose monies:money moves:move mythoi:mythos "
    "numena:numen occipita:occiput octopodes:octopus opera:opus opuses:opus our:my oxen:ox penes:penis penises:penis "
    "people:person sexes:sex soliloquies:soliloquy teeth:tooth testes:testis trilbys:trilby turves:turf zoa:zoon"
)
_IRREGULAR_ENDINGS = tuple(entry.split(":") for entry in _IRREGULAR.split())
# (what stands before, ending, new ending); the first that fits, all at the end of the word but the one with "^ox".
_RULES = (
    (".", "ae", "a"),
    (".", "itis", "itis"),
    (".", "eaux", "eau"),
    ("quiz", "zes", ""),
    ("matr", "ices", "ix"),
    ("ap|vert|ind", "ices", "ex"),
    ("^ox", "en", ""),
    ("alias|status", "es", ""),
    ("[octpvir|]", "i", "us"),
    ("cris|ax|test", "es", "is"),
    ("shoe", "s", ""),
    ("o|bus", "es", ""),
    ("[ml|]", "ice", "ouse"),
    ("x|ch|ss|sh", "es", ""),
    ("m", "ovies", "ovie"),
    (".", "ombies", "ombie"),
    ("s", "eries", "eries"),
    ("[^aeiouy]|qu", "ies", "y"),
    ("[aeo]l|[^d]ea", "ves", "f"),
    ("", "arves", "arf"),
    ("er", "ves", "ve"),
    ("[nlw]i", "ves", "fe"),
    ("[lr]", "ves", "f"),
    ("[aeo]", "ves", "ve"),
    ("sive|tive|hive", "s", ""),
    ("[^f]", "ves", "fe"),
    ("^analy", "ses", "sis"),
    ("analy", "ses", "asis"),
    ("ba|diagno|parenthe|progno|synop|the", "ses", "sis"),
    (".", "opses", "opsis"),
    (".", "yses", "ysis"),
    ("h|d|r|o|n|b|cl|p", "oses", "ose"),
    ("fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul", "ose", "ose"),
    (".", "oses", "osis"),
    ("[ti]", "a", "um"),
    ("n", "ews", "ews"),
    ("", "s", ""),
)
_COMPILED = tuple(
    (re.compile(f"({before}){ending}" + ("" if before == "^ox" else "$"), re.IGNORECASE), rf"\g<1>{new}")
    for before, ending, new in _RULES
)
_PREPOSITIONS = frozenset(
    "about above across after among around at athwart before behind below beneath beside besides between betwixt "
    "beyond but by during except for from in into near of off on onto out over since till to under until unto upon "
    "with".split()
)


def singular(word: str) -> str:
    """``pattern.en.singularize(word)`` for a noun."""
    if "-" in word:
        parts = word.split("-")
        if parts[1] in _PREPOSITIONS:
            return "-".join([singular(parts[0]), *parts[1:]])
    if word.endswith("'"):
        bare = word.rstrip("'")
        return singular(bare) + "'s" * (len(word) - len(bare))
    lower = word.lower()
    if not lower or lower in _TAILS:
        return word
    if lower.endswith(_IE_PLURALS):
        return lower
    for ending, new in _IRREGULAR_ENDINGS:
        if lower.endswith(ending):
            return word[: len(word) - len(ending)] + new
    for pattern, replacement in _COMPILED:
        if pattern.search(word):
            return pattern.sub(replacement, word)
    return word
