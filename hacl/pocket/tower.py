"""Pre-train the pocket vision tower: CLIP's contrastive loss through open_clip, plus a supervised loss per grid cell.

Captions alone do not teach a tower this small to tell all kinds apart within seconds, and with a weak tower the
hallucination that is left is the tower's. So a linear read-out of each of the 4 x 4 features also predicts the kind
and the colour of what stands in that cell. The read-outs and the text tower are thrown away; the tower is kept and
frozen.

Shapes: B images, h and w cells, Dv vision width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hacl.models.adapters import find_adapter
from hacl.models.pocket import BOS, EOS, PAD, TOWER, pocket_tokenizer
from hacl.pocket.draw import draw_scene
from hacl.pocket.language import describe
from hacl.pocket.scenes import GRID, IMAGE_SIZE, Scene
from hacl.pocket.world import COLOURS, KINDS

if TYPE_CHECKING:
    import numpy as np

_KIND_INDEX = {kind.name: index + 1 for index, kind in enumerate(KINDS)}  # 0 = empty cell
_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS)}
_CONTEXT = 48
_EMBED = 64


def scene_pixels(scenes: list[Scene]) -> np.ndarray:
    """(B, H, W, 3) uint8 drawings."""
    import numpy as np

    return np.stack([np.asarray(draw_scene(scene)) for scene in scenes])


def normalise(pixels_BHWC: np.ndarray) -> Tensor:
    """uint8 images -> (B, 3, H, W) in [-1, 1], as the pocket processor does for images of this size."""
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def cell_labels(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Kind (B, h, w), 0 = empty, and colour (B, h, w), -100 = empty, of every grid cell."""
    kinds = torch.zeros(len(scenes), GRID, GRID, dtype=torch.long)
    colours = torch.full_like(kinds, -100)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            kinds[index, thing.row, thing.column] = _KIND_INDEX[thing.kind]
            colours[index, thing.row, thing.column] = _COLOUR_INDEX[thing.colour]
    return kinds, colours


def _clip_model(vocab_size: int, eos_id: int, pad_id: int) -> nn.Module:
    import open_clip

    return open_clip.CustomTextCLIP(
        embed_dim=_EMBED,
        vision_cfg={"timm_model_name": TOWER, "timm_pool": "avg", "timm_proj": "linear", "image_size": IMAGE_SIZE},
        text_cfg={
            "context_length": _CONTEXT,
            "vocab_size": vocab_size,
            "width": 64,
            "heads": 2,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": eos_id,
            "pad_id": pad_id,
        },
    )


def pretrain_tower(
    scenes: list[Scene],
    *,
    seed: int,
    steps: int = 450,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    cell_weight: float = 1.0,
    report: Callable[[str], None] = print,
) -> dict[str, Tensor]:
    """Train on drawings and captions of ``scenes``; returns the timm model's state dict.

    Deterministic in (scenes, seed, steps, batch_size) on one machine and thread count.
    """
    import open_clip

    tokenizer = pocket_tokenizer()
    pad, bos, eos = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, BOS, EOS))
    rng = random.Random(f"tower/{seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = _clip_model(len(tokenizer), eos, pad)
        trunk = clip.visual.trunk
        kind_head, colour_head = nn.Linear(256, len(KINDS) + 1), nn.Linear(256, len(COLOURS))
        loss_of = open_clip.ClipLoss()
        parameters = [*clip.parameters(), *kind_head.parameters(), *colour_head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
        pixels = scene_pixels(scenes)
        kinds_all, colours_all = cell_labels(scenes)
        order: list[int] = []
        clip.train()
        for step in range(steps):
            if len(order) < batch_size:
                order = rng.sample(range(len(scenes)), len(scenes))
            batch, order = order[:batch_size], order[batch_size:]
            texts = [
                [bos, *tokenizer.encode(describe(scenes[i], rng).render(), add_special_tokens=False)] for i in batch
            ]
            ids = torch.full((batch_size, _CONTEXT), pad)
            for row, text in enumerate(texts):
                text = [*text[: _CONTEXT - 1], eos]
                ids[row, : len(text)] = torch.tensor(text)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))
            map_BDhw = trunk.forward_features(normalise(pixels[batch]))
            image = clip.visual.head(trunk.forward_head(map_BDhw))
            text = clip.encode_text(ids, normalize=True)
            contrastive = loss_of(F.normalize(image, dim=-1), text, clip.logit_scale.exp())
            cells = map_BDhw.permute(0, 2, 3, 1)
            kind_logits, colour_logits = kind_head(cells), colour_head(cells)
            cell = F.cross_entropy(kind_logits.flatten(0, 2), kinds_all[batch].flatten()) + F.cross_entropy(
                colour_logits.flatten(0, 2), colours_all[batch].flatten()
            )
            optimizer.zero_grad(set_to_none=True)
            (contrastive + cell_weight * cell).backward()
            optimizer.step()
            if step % 50 == 49 or step == steps - 1:
                with torch.no_grad():
                    occupied = kinds_all[batch] > 0
                    right = (kind_logits.argmax(-1) == kinds_all[batch])[occupied].float().mean().item()
                    top1 = (image @ text.T).argmax(1).eq(torch.arange(batch_size)).float().mean().item()
                report(
                    f"tower step {step + 1}/{steps}: contrastive {contrastive.item():.3f} (top-1 {top1:.2f}), "
                    f"cells {cell.item():.3f} (objects right {right:.3f})"
                )
    return {name: tensor.detach().clone() for name, tensor in trunk.state_dict().items()}


@torch.no_grad()
def tower_features(model, scenes: list[Scene], batch_size: int = 250) -> Tensor:
    """(B, h * w, Dv) features of a model's tower for drawings of ``scenes``."""
    adapter = find_adapter(model.eval())
    chunks = [scenes[start : start + batch_size] for start in range(0, len(scenes), batch_size)]
    return torch.cat([adapter.vision_features(normalise(scene_pixels(chunk))) for chunk in chunks])
