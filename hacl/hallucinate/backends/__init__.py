"""Generators of hallucinated captions behind one interface: lexical, naive, lm, openai, model."""

from hacl.hallucinate.backends.base import Backend, BackendOption, Item

__all__ = ["Backend", "BackendOption", "Item"]
