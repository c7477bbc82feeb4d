"""Fit a decoder to a run: how it attends, and whether packed rows are exact for it."""

from __future__ import annotations

import torch

from hacl.config import Config
from hacl.data.layout import makes_trees
from hacl.models import attention
from hacl.models.adapters import Adapter
from hacl.models.exactness import check_decoder
from hacl.training.label_loss import check_loss


def prepare(adapter: Adapter, config: Config) -> None:
    """Check the decoder of an adapter against the objective's form, then choose how it attends.

    Raises ValueError naming the setting to change where packed rows would not be exact or a kernel cannot run here.
    """
    trees = makes_trees(config.objective)
    longest = max(config.data.max_length, config.data.max_caption_length) + 1
    family = adapter.model.config.model_type
    check_decoder(adapter.decoder.config, longest=longest, trees=trees, family=family)
    check_loss(config.objective.lm_loss)
    attention.set_attention(adapter.decoder, implementation(config))


def implementation(config: Config) -> str:
    """The attention of the decoder in a run of `config` on this machine."""
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    return attention.resolve(config.model.attn_implementation, trees=makes_trees(config.objective), dtype=dtype)
