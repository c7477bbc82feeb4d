"""MiniGPT-4 in miniature, from its parts: what a composed folder must compute.

Vision-CAIR/MiniGPT-4@f1a33af: states of the tower after its last norm, queries that look at them through the Q-Former,
one linear map, and its output between the embeddings of the texts before and after the image; then a text-only Llama.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.reference.original_llava import WIDTH
from tests.tiny import COLOURS, SHAPES, WORDS

QUERIES, PIXELS, QFORMER = 6, 32, 24


def vicuna_tokenizer():
    """Word-level tokenizer of a text-only model that knows the words and marks of MiniGPT-4's prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["###", "Human", "Assistant", "Img", "<", ">", "></", ">", "</", ":"]
    words = dict.fromkeys(["<unk>", "<s>", "</s>", *WORDS, *COLOURS, *SHAPES, *marks])
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


class MiniGPT4:
    """The parts with random weights, and how they are saved by their authors."""

    def __init__(self, seed: int = 0):
        from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        self.tokenizer = vicuna_tokenizer()
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
        tower = {"hidden_size": 32, "intermediate_size": 48, "image_size": PIXELS, "patch_size": 8, **sizes}
        qformer = {"hidden_size": QFORMER, "intermediate_size": 48, **sizes}
        other = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "vocab_size": 40, **sizes}
        self.blip2 = Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config={**tower, "initializer_range": 0.2},
                qformer_config={**qformer, "vocab_size": 40, "initializer_range": 0.2},
                text_config={"model_type": "opt", **other},
                num_query_tokens=QUERIES,
                image_token_index=39,
            )
        ).eval()
        with torch.no_grad():
            self.blip2.query_tokens.normal_()
        llama = {"vocab_size": len(self.tokenizer), "hidden_size": WIDTH, "intermediate_size": 64}
        self.llm = LlamaForCausalLM(
            LlamaConfig(**llama, **sizes, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
        ).eval()
        self.projection = nn.Linear(QFORMER, WIDTH)

    @torch.no_grad()
    def image_tokens(self, pixels_IHW: torch.Tensor) -> torch.Tensor:
        """(I, Q, D)"""
        states = self.blip2.vision_model(pixels_IHW).last_hidden_state
        queries = self.blip2.query_tokens.expand(len(states), -1, -1)
        read = self.blip2.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        return self.projection(read)

    @torch.no_grad()
    def logits(self, before: list[int], pixels_IHW: torch.Tensor, after: list[int]) -> torch.Tensor:
        """(T, V) of one row: texts around the tokens of one image."""
        embeds = self.llm.get_input_embeddings()
        parts = [embeds(torch.tensor(before)), self.image_tokens(pixels_IHW)[0], embeds(torch.tensor(after))]
        return self.llm(inputs_embeds=torch.cat(parts)[None]).logits[0]

    def save(self, folder: Path) -> dict[str, Path]:
        """The three checkpoints: blip2 and llm as stock folders, projection as a pickled training checkpoint."""
        from transformers import Blip2Processor, BlipImageProcessor

        paths = {name: folder / name for name in ("blip2", "llm", "minigpt4.pth")}
        self.blip2.save_pretrained(paths["blip2"], max_shard_size="20KB")
        images = BlipImageProcessor(size={"height": PIXELS, "width": PIXELS})
        Blip2Processor(images, vicuna_tokenizer(), num_query_tokens=QUERIES).save_pretrained(paths["blip2"])
        self.llm.save_pretrained(paths["llm"])
        self.tokenizer.save_pretrained(paths["llm"])
        state = {f"llama_proj.{name}": tensor for name, tensor in self.projection.state_dict().items()}
        torch.save({"model": state, "config": {"run": {"seed": 42}}, "epoch": 4}, paths["minigpt4.pth"])
        return paths
