"""Random models of the LLaVA-1.5 architecture, at its full size or reduced, with a tokenizer trained here.

For rehearsals without a network: memory, speed and set-up of a run do not depend on what the weights know. Sizes are
those of LLaVA-1.5-7B (Liu et al., arXiv 2310.03744): Vicuna-7B, CLIP ViT-L/14 at 336 pixels, a two-layer projector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaProcessor

PATCH, HEAD = 14, 128  # pixels, width of an attention head
PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
# Vicuna's dialogue without its system text: the processor writes BOS, the template ends every answer with EOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'ASSISTANT: ' if message['role'] == 'assistant' else 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '" + IMAGE + "\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '" + EOS + "' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Size of a random LLaVA; the defaults are LLaVA-1.5-7B. pixels: side of the image, a multiple of 14."""

    layers: int = 32
    width: int = 4096
    vision_layers: int = 24
    vision_width: int = 1024
    pixels: int = 336
    vocabulary: int = 32064

    def __post_init__(self) -> None:
        for name, unit in (("width", HEAD), ("vision_width", 64), ("pixels", PATCH)):
            if getattr(self, name) < unit or getattr(self, name) % unit:
                raise ValueError(f"{name}={getattr(self, name)}: must be a multiple of {unit}")
        if min(self.layers, self.vision_layers - 1) < 1:
            raise ValueError(f"layers={self.layers}, vision_layers={self.vision_layers}: at least 1 and 2")


def llava_config(size: Size, image_token: int) -> LlavaConfig:
    """Configuration of a LLaVA-1.5 of this size. The feed-forward width keeps the 11,008 : 4,096 of Llama-7B."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.width * 43 // 16,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // HEAD,
        num_key_value_heads=size.width // HEAD,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_width // 64,
        image_size=size.pixels,
        patch_size=PATCH,
        projection_dim=768,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(size.pixels // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def llava_processor(texts: Iterable[str], size: Size) -> LlavaProcessor:
    """Byte-level BPE trained on `texts`, CLIP's image processor. Any text can be encoded; unseen words take more tokens
    than in a trained vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    specials = [UNKNOWN, BOS, EOS, IMAGE, PAD]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size.vocabulary < len(specials) + len(alphabet):
        raise ValueError(f"vocabulary={size.vocabulary}: at least {len(specials) + len(alphabet)}")
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    )
    pixels = {"height": size.pixels, "width": size.pixels}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": size.pixels}, crop_size=pixels),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the selection drops again
        chat_template=CHAT_TEMPLATE,
    )


def write_random_llava(
    folder: Path, size: Size, texts: Iterable[str], *, weights: bool = True, seed: int = 0, shard: str = "2GB"
) -> int:
    """Write configuration and processor, and with `weights` random bf16 safetensors of at most `shard` each.

    Returns the number of parameters. Raises FileExistsError for a folder that already holds a model. Memory: two bytes
    per parameter with weights, next to nothing without.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    folder = Path(folder)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} already holds a model; choose another folder")
    processor = llava_processor(texts, size)
    tokenizer = processor.tokenizer
    config = llava_config(size, tokenizer.convert_tokens_to_ids(IMAGE))
    for name, value in (("pad", PAD), ("bos", BOS), ("eos", EOS)):
        for part in (config, config.text_config):
            setattr(part, f"{name}_token_id", tokenizer.convert_tokens_to_ids(value))
    config.dtype = torch.bfloat16
    with torch.random.fork_rng(devices=[]), torch.device("cpu" if weights else "meta"):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    if weights:
        for name in ("pad", "bos", "eos"):
            setattr(model.generation_config, f"{name}_token_id", getattr(config, f"{name}_token_id"))
        model.save_pretrained(folder, max_shard_size=shard)
    else:
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
