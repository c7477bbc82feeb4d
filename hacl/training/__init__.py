"""The packed objective and everything that runs it: trainer, caches, checkpoints, export."""
