"""Hallucinated-caption generators and their filters."""
