"""Generation, measures of hallucination, representation diagnostics and their statistics."""
