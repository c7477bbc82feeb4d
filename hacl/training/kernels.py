"""Fit a decoder to a run: how it attends, and whether packed rows are exact for it."""

from __future__ import annotations

import torch

from hacl.config import Config
from hacl.config_rules import makes_trees
from hacl.models import attention
from hacl.models.adapters import Adapter
from hacl.models.exactness import check_decoder
from hacl.training.label_loss import check_loss

ENTRIES = 64  # pairs of a shape of rows and a mode; blocks are compiled once for each, and further ones run uncompiled


def prepare(adapter: Adapter, config: Config) -> None:
    """Check the model of an adapter against the objective's form, then choose how its decoder attends.

    Raises ValueError naming the setting to change where packed rows would not be exact or a kernel cannot run here.
    """
    check(adapter, config)
    check_loss(config.objective.lm_loss)
    attention.set_attention(adapter.decoder, implementation(config, masks=adapter.own_masks))
    if config.train.compile:
        compile_blocks(adapter)


def check(adapter: Adapter, config: Config) -> None:
    """Raise ValueError, naming the setting to change, where packed rows would not be exact for a model."""
    kind, objective = adapter.model.config.model_type, config.objective
    if objective.contrastive_weight and objective.form not in adapter.forms:
        raise ValueError(
            f"objective.form={objective.form}: in a {kind} model the tokens of an image see the prompt behind it, so "
            f"its state in a generation sequence is not that of the image; set objective.form={adapter.forms[-1]}"
        )
    trees = makes_trees(config.objective)
    longest = max(config.data.max_length, config.data.max_caption_length) + 1
    check_decoder(
        adapter.decoder.config,
        longest=longest,
        trees=trees,
        multiple=config.train.length_multiple,
        own_positions=adapter.own_positions,
        own_masks=adapter.own_masks,
    )


def compile_blocks(adapter: Adapter, backend: str = "inductor") -> None:
    """Compile every decoder block for the shapes it is called with, in place: names of parameters do not change.

    Blocks share their code, so there is one graph per shape of the rows (and per mode: training, validation, the first
    pass of GradCache) and not per block.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, ENTRIES)
    for block in adapter.blocks:
        block.compile(backend=backend, dynamic=False)


def implementation(config: Config, *, masks: bool = False) -> str:
    """The attention of the decoder in a run of `config` on this machine. masks: `Adapter.own_masks` of the model."""
    dtype = torch.bfloat16 if config.train.bf16 else torch.float32
    return attention.resolve(
        config.model.attn_implementation,
        trees=makes_trees(config.objective),
        dtype=dtype,
        compiled=config.train.compile,
        masks=masks,
    )
