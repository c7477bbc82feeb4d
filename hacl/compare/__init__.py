"""Compare an original model with its tuned version: what moved, how coherently, how much a shift gives back."""
