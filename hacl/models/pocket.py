"""The pocket model: a LLaVA-class model of about a million parameters built from stock classes, with its processor.

Tower: timm's `test_byobnet` (0.20 M parameters, a 128-pixel image becomes 4 x 4 features of width 256). Decoder: a
Llama of 0.85 M parameters. Between them FastVLM's two-layer projector. Everything reloads with `AutoProcessor` and
`AutoModelForImageTextToText`; this file only chooses sizes and words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hacl.pocket.language import all_words
from hacl.pocket.scenes import IMAGE_SIZE

if TYPE_CHECKING:
    from transformers import FastVlmForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

TOWER = "test_byobnet"
TOWER_STRIDE = 32
NUM_IMAGE_TOKENS = (IMAGE_SIZE // TOWER_STRIDE) ** 2
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, USER, ASSISTANT = "<image>", "<user>", "<assistant>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT)
# No BOS: the tokenizer writes it. The generation block marks what an assistant turn adds, EOS included.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + ASSISTANT + " {% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %} " + EOS + "{% endgeneration %}"
    "{% else %}" + USER + " "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + " {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + " {% endif %}"
)


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, lower-cased, punctuation apart; BOS is added by the tokenizer, EOS is not."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *all_words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE, USER, ASSISTANT],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def pocket_processor() -> LlavaProcessor:
    """Processor with the pocket tokenizer; any image is resized to 128 x 128 and scaled to [-1, 1]."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=pocket_tokenizer(),
        patch_size=TOWER_STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def pocket_model(
    seed: int = 0, *, hidden_size: int = 128, layers: int = 4, heads: int = 4, intermediate_size: int = 352
) -> FastVlmForConditionalGeneration:
    """An untrained pocket model in fp32. The global RNG is left as it was."""
    import torch
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlamaConfig, TimmWrapperConfig

    tokenizer = pocket_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.06,  # a width of 128 learns several times faster than with the usual 0.02
    )
    vision = TimmWrapperConfig(architecture=TOWER, do_pooling=False, hidden_size=256, num_labels=0)
    config = FastVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=NUM_IMAGE_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastVlmForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()
