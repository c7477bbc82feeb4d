"""Adapters to stock `transformers` classes, contrastive heads and the small offline models."""
