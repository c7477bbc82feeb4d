"""Adapters of the multimodal families of stock `transformers`, by the `model_type` of their configuration.

To add a family, let FAMILY be the name of its tiny model in `tests/families`:

1. The processor: in `hacl/data/image_formats.py` add its class to `FORMATS` with the tensors that it makes of an image
   (`names`), the mark that a chat template writes for an image, and whether the number of tokens depends on its shape.
   Subclass `ImageFormat` where tensors of several images are not joined by concatenation (`collate`), or where the
   processor writes more than the image's tokens (`written`).
2. The model: in this package subclass `Adapter` with the attribute paths of towers (`VISION`), of what turns their
   features into embeddings (`CONNECTOR`), of parameters outside all of these (`PARAMETERS`), of `DECODER`, `NORM` and
   `LM_HEAD`, and with the names of the images' tensors (`inputs`). `tests/families/facts.py` has all of them. Every
   parameter must lie in exactly one group.
3. What is special: `image_embeddings` where `get_image_features` is not enough; `merge` where features do not take the
   place of embeddings; `MaskedAdapter` and `ImageFormat.islands` where tokens see later ones, `positions` (with
   `own_positions = True`) where rotary positions have several axes, `decoder_inputs` for further keywords of the
   decoder; `unread` for modules that no loss reaches. `SplitAdapter` is for a tower and a projector that are two calls
   with one number of tokens: then features of a frozen tower can be cached.
4. Say in the class's docstring what is exact: what a sequence sees before its image, the kind of attention, the
   positions, and which token's state `image_pool=last` reads (the last of all that is written for the image).
5. Register the class in `FAMILIES` and take FAMILY from `NOT_YET` in `tests/families/test_packed.py`, which holds the
   packed call against one stock forward pass for each sequence, in states and in gradients.
"""

from __future__ import annotations

from hacl.models.adapters import Adapter
from hacl.models.families.blip import Blip2Adapter, InstructBlipAdapter
from hacl.models.families.deepseek import DeepseekVLAdapter, DeepseekVLHybridAdapter
from hacl.models.families.gemma import Gemma3Adapter, PaliGemmaAdapter
from hacl.models.families.idefics import Idefics2Adapter, Idefics3Adapter
from hacl.models.families.internvl import InternVLAdapter
from hacl.models.families.llava import FastVlmAdapter, LlavaAdapter, LlavaNextAdapter, LlavaOnevisionAdapter
from hacl.models.families.molmo2 import Molmo2Adapter
from hacl.models.families.qwen import Qwen2VLAdapter, Qwen3VLAdapter

FAMILIES: dict[str, type[Adapter]] = {
    "llava": LlavaAdapter,
    "fast_vlm": FastVlmAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "gemma3": Gemma3Adapter,
    "paligemma": PaliGemmaAdapter,
    "molmo2": Molmo2Adapter,
    "idefics2": Idefics2Adapter,
    "idefics3": Idefics3Adapter,
    "smolvlm": Idefics3Adapter,
    "qwen2_vl": Qwen2VLAdapter,
    "qwen2_5_vl": Qwen2VLAdapter,
    "qwen3_vl": Qwen3VLAdapter,
    "qwen3_vl_moe": Qwen3VLAdapter,
    "internvl": InternVLAdapter,
    "blip-2": Blip2Adapter,
    "instructblip": InstructBlipAdapter,
    "deepseek_vl": DeepseekVLAdapter,
    "deepseek_vl_hybrid": DeepseekVLHybridAdapter,
}
