"""Compare an original model with its tuned version: what moved, how coherently, and how much of it a shift gives back."""
