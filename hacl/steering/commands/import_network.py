"""`steer.py import-network`: a network of the released Learn-to-Steer code as an artefact."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from hacl.steering.commands.extract import layer_key
from hacl.steering.l2s_import import import_upstream_net
from hacl.steering.steerer import ContextSpec
from hacl.steering.vectors import Provenance, save_steerer


def run(options: Namespace) -> int:
    """Read the network, save it for --model."""
    read = ContextSpec(layer_key(options.context_layer), options.context_token)
    steerer = import_upstream_net(
        options.network, read=read, layer=layer_key(options.layer), alpha=options.alpha, policy=options.policy
    )
    config = {"network": Path(options.network).name, "read": [read.layer, read.token], "layer": options.layer}
    provenance = Provenance.of(options.model, token_rule="as its authors trained it", config=config, **config)
    save_steerer(steerer, options.out, provenance)
    print(f"written: {options.out}")
    return 0
