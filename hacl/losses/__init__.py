"""Losses as pure functions of features and logits; imports only torch and einops."""
