"""The original LLaVA model in miniature, from its parts: what an imported checkpoint must compute.

haotian-liu/LLaVA@c121f04: states of one tower layer without the class token, one projector, put where image index -200
stands; then a text-only decoder. Names of the tensors are those that its `save_pretrained` writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from tests.tiny import COLOURS, SHAPES, WORDS

IMAGE_INDEX = -200
WIDTH, TOWER_WIDTH = 32, 16


def text_tokenizer():
    """Word-level tokenizer of a text-only model: no token for images, and unk for padding, as Vicuna has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(["<unk>", "<s>", "</s>", *WORDS, *COLOURS, *SHAPES])
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


class OriginalLlava:
    """kind: "linear" or "mlp2x_gelu"; heads: with what HACL adds."""

    def __init__(self, kind: str = "mlp2x_gelu", *, heads: bool = False, seed: int = 0):
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        self.kind = kind
        tokenizer = text_tokenizer()
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, pad_token_id=0,
                bos_token_id=1, eos_token_id=2,
            )
        ).eval()  # fmt: skip
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=TOWER_WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                image_size=32, patch_size=8,
            )
        ).eval()  # fmt: skip
        first = nn.Linear(TOWER_WIDTH, WIDTH)
        self.projector = first if kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.heads = nn.ModuleDict(
            {"vision_projector": nn.Linear(WIDTH, 8), "text_projector": nn.Linear(WIDTH, 8)} if heads else {}
        )

    @torch.no_grad()
    def logits(self, ids: list[int], pixels: torch.Tensor) -> torch.Tensor:
        """(T, V) for one row; IMAGE_INDEX stands where the image goes."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        embeds, at = self.llm.get_input_embeddings(), ids.index(IMAGE_INDEX)
        parts = [embeds(torch.tensor(ids[:at])), self.projector(states)[0], embeds(torch.tensor(ids[at + 1 :]))]
        return self.llm(inputs_embeds=torch.cat(parts)[None]).logits[0]

    def tensors(self, *, tower: bool) -> dict[str, torch.Tensor]:
        """The state dict under the original names."""
        found = dict(self.llm.state_dict())
        found.update({f"model.mm_projector.{name}": tensor for name, tensor in self.projector.state_dict().items()})
        if tower:
            prefix = "model.vision_tower.vision_tower.vision_model."
            found.update({prefix + name: tensor for name, tensor in self.tower.state_dict().items()})
        if len(self.heads):
            found.update({f"model.{name}": tensor for name, tensor in self.heads.state_dict().items()})
            found["model.itc_temp"] = torch.tensor(0.05)
            found |= {"model.image_queue": torch.randn(8, 4), "model.queue_ptr": torch.zeros(1, dtype=torch.long)}
        return found

    def config(self) -> dict:
        """config.json as the original writes it."""
        return self.llm.config.to_dict() | {
            "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "nowhere/clip",
            "mm_hidden_size": TOWER_WIDTH, "mm_projector_type": self.kind, "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "use_mm_proj": True,
        }  # fmt: skip

    def save_tower(self, folder: Path) -> Path:
        """The CLIP checkpoint that `mm_vision_tower` names."""
        from transformers import CLIPImageProcessor

        self.tower.save_pretrained(folder)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        CLIPImageProcessor(**size).save_pretrained(folder)
        return folder

    def save(
        self, folder: Path, tensors: dict[str, torch.Tensor] | None = None, name: str = "pytorch_model.bin"
    ) -> Path:
        """Weights as one pickled file, config and tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.tensors(tower=False) if tensors is None else tensors, folder / name)
        (folder / "config.json").write_text(json.dumps(self.config()))
        text_tokenizer().save_pretrained(folder)
        return folder
