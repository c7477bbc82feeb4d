"""Hallucinated captions: generators, the words they use, and the filters that keep true captions out."""

from hacl.hallucinate.cooccurrence import Cooccurrence, cooccurrence
from hacl.hallucinate.generators import Hallucinator, make_hallucinator
from hacl.hallucinate.lexical import LexicalHallucinator
from hacl.hallucinate.lexicon import AttributeSet, Lexicon, ObjectKind, PhraseRule
from hacl.hallucinate.vocabulary import default_lexicon

__all__ = [
    "AttributeSet",
    "Cooccurrence",
    "Hallucinator",
    "LexicalHallucinator",
    "Lexicon",
    "ObjectKind",
    "PhraseRule",
    "cooccurrence",
    "default_lexicon",
    "make_hallucinator",
]
