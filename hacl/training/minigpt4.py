"""MiniGPT-4 as a folder of the stock BLIP-2 class: its parts are BLIP-2's tower and Q-Former, Vicuna, one linear map.

Sources: Vision-CAIR/MiniGPT-4@f1a33af (`minigpt4/models/mini_gpt4.py`, `prompts/alignment.txt`, `train_configs/`;
arXiv 2304.10592). The released checkpoint holds the linear map alone, under `model` as `llama_proj`. The stock class
computes the same: tower with its last norm, 32 queries through the Q-Former, the map, Llama. BLIP-2's processor writes
image tokens before BOS; here they stand where the prompt has them, which LLaVA's processor does.

Shapes: Dq width of the Q-Former, D hidden size of the decoder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hacl.models.original_llava import BUFFERS
from hacl.training.interchange import MULTIPLE, add_image_token, enlarge, fill, refuse_existing, set_special_tokens
from hacl.training.original_folders import read_language_model, read_model, read_tensors

VISUAL = ("vision_model.", "qformer.", "query_tokens")  # of a stock BLIP-2; what it adds is replaced
IN_FP32 = ("qformer.", "query_tokens")  # as the stock class keeps them
PROJECTION, STOCK_PROJECTION = "llama_proj.", "language_projection."
DECODER = "language_model."
TABLES = (f"{DECODER}model.embed_tokens.weight", f"{DECODER}lm_head.weight")
END = "###"  # ends every turn
# train_configs/minigpt4_stage2_finetune.yaml: '###Human: {} ###Assistant: ', end_sym '###'; the image as in
# prompts/alignment.txt. A system text stands before the first mark, as in minigpt4/conversation/conversation.py.
CHAT_TEMPLATE = (
    "{%- macro render(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<Img><image></Img> ' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ render(message['content']) + '###' }}"
    "{% else %}{% if loop.first %}{{ '###' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' }}"
    "{% generation %}{{ render(message['content']) + '###' }}{% endgeneration %}"
    "{% else %}{{ 'Human: ' + render(message['content']) + ' ###' }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def compose(
    blip2: Path | str,
    llm: Path | str,
    out: Path | str,
    *,
    projection: Path | str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write `out`, which stock classes open: model and processor. Returns a summary.

    blip2: folder of a stock BLIP-2, of which tower, Q-Former and queries are taken (MiniGPT-4: those trained with
    FLAN-T5-XXL); llm: folder of a Llama with its tokenizer (Vicuna v0); projection: MiniGPT-4's checkpoint, None for a
    new map from `seed`; dtype: None keeps that of the decoder. The Q-Former stays in fp32.

    Raises ValueError, FileNotFoundError or FileExistsError for what does not fit; nothing is left at `out` then.
    """
    from transformers import Blip2ForConditionalGeneration

    out = Path(out)
    refuse_existing(out)
    source = _blip2_config(blip2)
    content, decoder = read_language_model(llm)
    state = read_model(Path(blip2), VISUAL)
    if not state:
        raise FileNotFoundError(f"{blip2}: no weights of a BLIP-2 tower and Q-Former in it")
    state |= {f"{DECODER}{name}": tensor for name, tensor in decoder.items() if not name.endswith(BUFFERS)}
    sizes = (source.qformer_config.hidden_size, content["hidden_size"])
    state |= _new_projection(*sizes, seed) if projection is None else _read_projection(Path(projection), *sizes)
    processor = _processor(blip2, llm, source)
    vocabulary = max(len(processor.tokenizer), len(state[TABLES[0]]))
    vocabulary += -vocabulary % MULTIPLE
    rows = enlarge(state, vocabulary, TABLES)
    kept = dtype or state[TABLES[0]].dtype
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(_stock_config(source, content, processor, vocabulary))
    fill(model, {n: tensor.to(torch.float32 if n.startswith(IN_FP32) else kept) for n, tensor in state.items()})
    set_special_tokens(model, processor)
    stops = stop_tokens(processor.tokenizer)
    model.generation_config.eos_token_id = stops
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "image_tokens": source.num_query_tokens, "new_rows": rows, "dtype": str(kept).removeprefix("torch."),
        "projection": "new" if projection is None else "read", "stops": stops,
    }  # fmt: skip


def _blip2_config(folder: Path | str):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "blip-2":
        raise ValueError(f"{folder}: a {config.model_type} model; the tower and the Q-Former must be those of a BLIP-2")
    if config.qformer_config.use_qformer_text_input:
        raise ValueError(f"{folder}: its Q-Former reads the question; MiniGPT-4's reads the image alone")
    return config


def _read_projection(path: Path, width: int, hidden_size: int) -> dict[str, Tensor]:
    tensors = read_tensors(path, inside=("model",))
    wanted = {f"{PROJECTION}weight": (hidden_size, width), f"{PROJECTION}bias": (hidden_size,)}
    lacking, more = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if lacking or more:
        raise ValueError(
            f"{path}: a MiniGPT-4 checkpoint holds {' and '.join(wanted)} alone; "
            + (f"missing {lacking}" if lacking else f"this one also has {more[:3]} (MiniGPT-v2 is another model)")
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{path}: {name} is {tuple(tensors[name].shape)}, but Q-Former and decoder need {shape}; "
                "is it of another size of Vicuna, or of a model without a Q-Former?"
            )
    return {name.replace(PROJECTION, STOCK_PROJECTION): tensor for name, tensor in tensors.items()}


def _new_projection(width: int, hidden_size: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = nn.Linear(width, hidden_size).state_dict()
    return {f"{STOCK_PROJECTION}{name}": tensor for name, tensor in state.items()}


def _processor(blip2: Path | str, llm: Path | str, source):
    """LLaVA's processor, which writes as many image tokens as there are queries where the prompt has its mark."""
    from transformers import AutoTokenizer, BlipImageProcessor, LlavaProcessor

    images = BlipImageProcessor.from_pretrained(blip2)
    pixels = source.vision_config.image_size
    if dict(images.size) != {"height": pixels, "width": pixels}:
        raise ValueError(f"{blip2}: images of {dict(images.size)} for a tower of {pixels} pixels")
    tokenizer = AutoTokenizer.from_pretrained(llm)
    add_image_token(tokenizer)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=pixels,  # one patch, and the other queries as additional tokens: any number of queries can be said
        num_additional_image_tokens=source.num_query_tokens - 1,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def _stock_config(source, decoder: dict[str, Any], processor, vocabulary: int):
    from transformers import Blip2Config, LlamaConfig

    own = {name: value for name, value in decoder.items() if name not in ("model_type", "architectures")}
    text = LlamaConfig(**own | {"vocab_size": vocabulary, "tie_word_embeddings": False})
    return Blip2Config(
        vision_config=source.vision_config.to_dict(),
        qformer_config=source.qformer_config.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=source.num_query_tokens,
        image_token_index=processor.image_token_id,
        tie_word_embeddings=False,
    )


def stop_tokens(tokenizer) -> list[int]:
    """EOS, and the first token of the mark that ends a turn, alone and behind a word.

    Vicuna's tokenizer writes the mark as one token after a space, as two after a word; generation stops at the first.
    """
    found = [tokenizer.eos_token_id]
    for before in ("", "a"):
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else 0
        token = tokenizer(f"{before}{END}", add_special_tokens=False)["input_ids"][start]
        if token not in (*found, tokenizer.unk_token_id):
            found.append(token)
    return found
