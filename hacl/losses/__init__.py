"""Losses as pure functions of features and logits, alone or across ranks."""
