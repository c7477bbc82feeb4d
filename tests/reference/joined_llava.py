"""The parts that a LLaVA is joined from, as their authors save them, and what the whole must compute.

An open_clip tower of a tiny architecture of our own, and a text-only Llama. Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

VISION = {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
MEAN, SPREAD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def open_clip_model(vision: dict | None = None, *, quick_gelu: bool = False, seed: int = 0):
    """(model of open_clip itself, its model configuration)."""
    import open_clip

    torch.manual_seed(seed)
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": {**VISION, **(vision or {})}, "text_cfg": text}
    model = open_clip.model.CLIP(**config, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.3)
    return model, config | ({"quick_gelu": True} if quick_gelu else {})


def save_open_clip(folder: Path, model, config: dict, **preprocess) -> Path:
    """The folder that `open_clip.push_to_hf_hub` writes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    content = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": SPREAD, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


@torch.no_grad()
def block_states(visual: nn.Module, pixels_IHW: torch.Tensor) -> list[torch.Tensor]:
    """States before the first block and after each (I, 1 + N, Dv), by open_clip's own modules."""
    states = [visual._embeds(pixels_IHW)]
    for block in visual.transformer.resblocks:
        states.append(block(states[-1]))
    return states


@torch.no_grad()
def joined_logits(llm, states_INDv: torch.Tensor, projector: dict[str, torch.Tensor], ids: list[int], image: int):
    """(T, V): the tokens of one image through the projector's maps, in the place of the id `image`."""
    tokens_ND = states_INDv[0, 1:] @ projector["linear_1.weight"].T + projector["linear_1.bias"]
    if not torch.equal(projector["linear_2.weight"], torch.eye(len(tokens_ND[0]))):
        tokens_ND = nn.functional.gelu(tokens_ND)
    tokens_ND = tokens_ND @ projector["linear_2.weight"].T + projector["linear_2.bias"]
    embeds, at = llm.get_input_embeddings(), ids.index(image)
    parts = [embeds(torch.tensor(ids[:at])), tokens_ND, embeds(torch.tensor(ids[at + 1 :]))]
    return llm(inputs_embeds=torch.cat(parts)[None]).logits[0]
