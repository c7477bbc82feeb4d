"""What is true of each family in stock transformers 5.23, as plain data: paths, inputs, positions, attention.

Every field is checked against the tiny models by `test_families.py`. Paths are attribute paths in the class that
`AutoModelForImageTextToText` loads. Shapes: I images, N tokens of one image, T tiles, D hidden size of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ((48, 48), (96, 40))
ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
ALL_LINEARS = frozenset((*ATTENTION, "o_proj", *GATED))
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Facts:
    """One family.

    vision, connector: paths of the towers, and of what turns their features into decoder embeddings; decoder: the stack
    that takes `inputs_embeds` (its blocks and last norm are `decoder.layers` and `decoder.<norm>`); parameters: names
    of parameters outside all of these; unused: beginnings of the names of parameters that the loss does not reach.
    tensors: what the processor returns beside `input_ids` and `attention_mask`; mark: what the user's text holds for an
    image; around: tokens before and after the first run of image tokens; tokens: image tokens of an image of each of
    `SHAPES`, in pixels (width, height); tokens_beside: of an image that is not alone in its text, where they differ.
    features: what `get_image_features(...).pooler_output` is: "tensor" (I, N, D), "tiles" (T, N, D), or "list" and
    "tuple" of one (N, D) for each image; owner: path of the module that has the method.
    rotary: "1d", "mrope" (time, height and width: position_ids (3, rows, tokens)), or "learned"; sections: of mrope;
    first_position: position of the first token.
    layer_types: kinds of the blocks where they differ; image_sees_image: an image's tokens see later ones of it;
    images_share: tokens of two images of one row see each other; prompt_sees_prompt: all of a prompt sees all of it;
    mask_input: the input that says so; without_it: what attention is without that input, in silence.
    answer_mask: the mask of an answer's tokens that `apply_chat_template` returns is "right", begins "early" (the
    processor adds a token before it and does not count that), is "lost" (the processor expands images without a record
    of it), or there is none, because the processor has "no template".
    embed_scale: factor of the input embeddings, in the tiny model; image tokens are never scaled.
    deepstack: tower features added after that many of the first blocks; adds_features: features are added to the
    embedding of the image token; features_read_text: the image's features depend on the prompt.
    text_alone: the model takes a text without an image; training_needs: inputs without which it refuses to train.
    linears: names of the linear layers of a decoder block; shared_linears: those that towers or connectors have too.
    hidden_states: name of the part of the output that has them, "" for the output itself.
    head_lacks: number of last ids that have an embedding and no logit; tied: output embedding is the input one.
    batch_differs: why a row of a left-padded batch is not what it is alone, in the stock forward pass.
    """

    model_type: str
    vision: tuple[str, ...] = ("model.vision_tower",)
    connector: tuple[str, ...] = ("model.multi_modal_projector",)
    decoder: str = "model.language_model"
    norm: str = "norm"
    lm_head: str = "lm_head"
    parameters: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    tensors: frozenset[str] = frozenset({"pixel_values"})
    image_token: str = "<image>"
    image_token_attribute: str = "image_token_id"
    mark: str = "<image>"
    around: tuple[str, str] = (":", "describe")
    tokens: tuple[int, int] = (16, 16)
    tokens_beside: tuple[int, ...] = ()
    features: str = "tensor"
    owner: str = ""
    rotary: str = "1d"
    sections: tuple[int, ...] = ()
    first_position: int = 0
    layer_types: tuple[str, ...] = ()
    image_sees_image: bool = False
    images_share: bool = False
    prompt_sees_prompt: bool = False
    mask_input: str = ""
    without_it: str = "causal"
    answer_mask: str = "right"
    embed_scale: float = 1.0
    deepstack: int = 0
    adds_features: bool = False
    features_read_text: bool = False
    text_alone: bool = True
    training_needs: str = ""
    linears: frozenset[str] = ALL_LINEARS
    shared_linears: frozenset[str] = frozenset(ATTENTION)
    hidden_states: str = ""
    head_lacks: int = 0
    tied: bool = False
    batch_differs: str = ""

    @property
    def by_shape(self) -> bool:
        """Whether the number of tokens of an image depends on its shape."""
        return self.tokens[0] != self.tokens[1]


CLIP_UNUSED = ("model.vision_tower.encoder.layers.1.", "model.vision_tower.post_layernorm.")
QFORMER = {
    "vision": ("vision_model",),
    "connector": ("qformer", "language_projection"),
    "decoder": "language_model.model",
    "lm_head": "language_model.lm_head",
    "shared_linears": NONE,
    "hidden_states": "language_model_outputs",
    "parameters": ("query_tokens",),
    "mark": "",
    "answer_mask": "no template",
    "around": ("", "USER"),
    "tokens": (4, 4),
}
IMAGE_GAP = (
    "the processor puts the image tokens before the padding, and the forward pass numbers positions through the gap"
)
IDEFICS = {
    "vision": ("model.vision_model",),
    "connector": ("model.connector",),
    "decoder": "model.text_model",
    "tensors": frozenset({"pixel_values", "pixel_attention_mask"}),
    "features": "list",
}
TILED = {**IDEFICS, "around": ("<row_1_col_1>", "<fake_token_around_image>"), "tokens": (20, 12)}
QWEN = {
    "shared_linears": NONE,
    "vision": ("model.visual",),
    "connector": ("model.visual.merger",),
    "tensors": frozenset({"pixel_values", "image_grid_thw", "mm_token_type_ids"}),
    "image_token": "<|image_pad|>",
    "mark": "<|vision_start|><|image_pad|><|vision_end|>",
    "around": ("<|vision_start|>", "<|vision_end|>"),
    "tokens": (36, 60),
    "features": "tuple",
    "rotary": "mrope",
}
QWEN3 = {**QWEN, "connector": ("model.visual.merger", "model.visual.deepstack_merger_list"), "sections": (2, 1, 1)}
DEEPSEEK = {
    "vision": ("model.vision_model",),
    "connector": ("model.aligner",),
    "image_token": "<image_placeholder>",
    "mark": "<image_placeholder>",
    "owner": "model",
}

FACTS = {
    "llava": Facts("llava", features="list", unused=CLIP_UNUSED),
    "llava_next": Facts(
        "llava_next",
        parameters=("model.image_newline",),
        unused=CLIP_UNUSED,
        tensors=frozenset({"pixel_values", "image_sizes"}),
        tokens=(88, 52),
        features="list",
    ),
    "llava_onevision": Facts(
        "llava_onevision",
        parameters=("model.image_newline",),
        unused=("model.vision_tower.post_layernorm.",),
        tensors=frozenset({"pixel_values", "image_sizes", "batch_num_images"}),
        tokens=(88, 52),
        tokens_beside=(17, 17),
        features="list",
    ),
    "fast_vlm": Facts(
        "fast_vlm", shared_linears=NONE, tokens=(4, 4), unused=("model.vision_tower.timm_model.head.norm.",)
    ),
    "blip_2": Facts("blip-2", **QFORMER, text_alone=False, batch_differs=IMAGE_GAP),
    "blip_2_opt": Facts(
        "blip-2",
        **{
            **QFORMER,
            "decoder": "language_model.model.decoder",
            "linears": frozenset((*ATTENTION, "out_proj", "fc1", "fc2")),
            "shared_linears": frozenset({"fc1", "fc2"}),
        },
        norm="final_layer_norm",
        text_alone=False,
        rotary="learned",
    ),
    "instructblip": Facts(
        "instructblip",
        **QFORMER,
        tensors=frozenset({"pixel_values", "qformer_input_ids", "qformer_attention_mask"}),
        features_read_text=True,
        text_alone=False,
        unused=("qformer.encoder.layer.1.intermediate.", "qformer.encoder.layer.1.output."),
        batch_differs=f"{IMAGE_GAP}; the Q-Former's text is padded on the decoder's side and its positions count that",
    ),
    "idefics2": Facts(
        "idefics2",
        **IDEFICS,
        around=("<fake_token_around_image>", "<fake_token_around_image>"),
        tokens=(4, 4),
        shared_linears=ALL_LINEARS,
        answer_mask="lost",
    ),
    "idefics3": Facts("idefics3", **TILED),
    "smolvlm": Facts("smolvlm", **TILED),
    "qwen2_vl": Facts("qwen2_vl", **QWEN, sections=(1, 1, 2)),
    "qwen2_5_vl": Facts("qwen2_5_vl", **{**QWEN, "shared_linears": frozenset(GATED)}, sections=(1, 1, 2)),
    "qwen3_vl": Facts("qwen3_vl", **QWEN3, deepstack=2),
    "qwen3_vl_moe": Facts("qwen3_vl_moe", **QWEN3, linears=frozenset((*ATTENTION, "o_proj")), deepstack=2),
    "internvl": Facts(
        "internvl",
        image_token="<IMG_CONTEXT>",
        mark="<IMG_CONTEXT>",
        around=("<img>", "</img>"),
        tokens=(20, 12),
        features="tiles",
    ),
    "molmo2": Facts(
        "molmo2",
        tensors=frozenset(
            {"pixel_values", "image_token_pooling", "image_grids", "image_num_crops", "mm_token_type_ids"}
        ),
        image_token="<im_patch>",
        mark="<|image|>",
        around=("<low_res_im_start>", "<im_col>"),
        tokens=(13, 14),
        features="tuple",
        image_sees_image=True,
        images_share=True,
        adds_features=True,
        shared_linears=ALL_LINEARS,
        training_needs="mm_token_type_ids",
        mask_input="mm_token_type_ids",
        answer_mask="early",
        head_lacks=10,
    ),
    "gemma3": Facts(
        "gemma3",
        tensors=frozenset({"pixel_values", "token_type_ids"}),
        image_token="<image_soft_token>",
        mark="<start_of_image>",
        around=("<start_of_image>", "<end_of_image>"),
        tokens=(4, 4),
        mask_input="token_type_ids",
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        image_sees_image=True,
        embed_scale=32**0.5,
        tied=True,
    ),
    "paligemma": Facts(
        "paligemma",
        tensors=frozenset({"pixel_values", "token_type_ids"}),
        around=(":", "<s>"),
        first_position=1,
        image_sees_image=True,
        images_share=True,
        prompt_sees_prompt=True,
        mask_input="token_type_ids",
        without_it="full",
        answer_mask="early",
        embed_scale=32**0.5,
        tied=True,
    ),
    "deepseek_vl": Facts("deepseek_vl", **DEEPSEEK),
    "deepseek_vl_hybrid": Facts(
        "deepseek_vl_hybrid",
        **{
            **DEEPSEEK,
            "vision": ("model.vision_model", "model.high_res_vision_model"),
            "connector": ("model.aligner", "model.high_res_vision_neck", "model.high_res_vision_proj"),
        },
        parameters=("model.high_res_vision_alpha",),
        tensors=frozenset({"pixel_values", "high_res_pixel_values"}),
    ),
}
