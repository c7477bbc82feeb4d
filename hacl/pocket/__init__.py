"""The offline world: scenes drawn by code with exact ground truth, their language, and their laws of co-occurrence."""
