"""Generation, measures of hallucination, representation diagnostics and their statistics."""

from hacl.evaluation.scorers import InputError, score

__all__ = ["InputError", "score"]
