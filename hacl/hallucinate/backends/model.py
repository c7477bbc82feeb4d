"""On-policy negatives: what a multimodal model itself says of a photograph it cannot see (blurred or absent).

The model goes on from the caption's first words, so that a candidate stays close to its caption in form, at a high
temperature; what it then says comes from its language prior, which is what it hallucinates from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hacl.data.images import load_image, resolve_image
from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.backends.base import BackendOption, Item, caption_of, checked_types
from hacl.hallucinate.backends.checks import check_text, keep_different
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.english import words_of
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.survey import Survey
from hacl.hallucinate.vocabulary import default_lexicon

_TEMPLATES = ("chat", "plain")
_PROMPTS = {"chat": "Describe the image in one short sentence.", "plain": ""}


class ModelBackend:
    """model: folder of a multimodal model and its processor; image_root: where records' images are; view: "absent"
    (no image) or "blurred"; keep: share of the caption's words that the model goes on from; template: "chat", the
    processor's own with a request (`prompt`), or "plain", image and caption alone, for models trained on captions."""

    name = "model"
    is_local_cpu = False
    options: ClassVar[tuple[BackendOption, ...]] = (
        BackendOption("model", "folder of a multimodal model (required)"),
        BackendOption("image_root", "folder that image paths start from (required with view=blurred)"),
        BackendOption("view", "what the model sees", "absent", choices=("absent", "blurred")),
        BackendOption("temperature", "of the sampling", 1.2, float),
        BackendOption("template", "chat: the processor's; plain: caption after image", "chat", choices=_TEMPLATES),
        BackendOption("prompt", "what is asked for (default: a short sentence; nothing with template=plain)"),
        BackendOption("keep", "share of the caption's words to go on from", 0.4, float),
        BackendOption("device", "cpu or cuda (default: cuda where there is one)"),
    )

    def __init__(
        self,
        *,
        model: str | None = None,
        image_root: str | None = None,
        view: str = "absent",
        temperature: float = 1.2,
        template: str = "chat",
        prompt: str | None = None,
        keep: float = 0.4,
        device: str | None = None,
        seed: int = 0,
        types: Sequence[str] | None = None,
        survey: Survey | None = None,
        lexicon: Lexicon | None = None,
    ):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if not model or not (Path(model) / "config.json").is_file():
            raise FileNotFoundError(f"backend model: {model}: no config.json; give the folder of a multimodal model")
        if view not in ("absent", "blurred") or view == "blurred" and not image_root:
            raise ValueError(f"backend model: view={view!r}; use absent, or blurred with image_root")
        if template not in _TEMPLATES:
            raise ValueError(f"backend model: template={template!r}; use chat or plain")
        if not 0 <= keep < 1 or temperature <= 0:
            raise ValueError("backend model: keep must be in [0, 1) and temperature positive")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoProcessor.from_pretrained(model, local_files_only=True)
        opened = AutoModelForImageTextToText.from_pretrained(model, local_files_only=True, use_safetensors=True)
        self.model = opened.to(self.device).eval()
        self.identity = (
            f"{Path(model).name} {hashlib.sha256((Path(model) / 'config.json').read_bytes()).hexdigest()[:12]}"
        )
        self.image_root = None if image_root is None else Path(image_root)
        self.view, self.temperature, self.keep = view, temperature, keep
        self.template, self.prompt = template, _PROMPTS[template] if prompt is None else prompt
        self.seed, self.types = seed, checked_types(types)
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.rejections: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        names = ("seed", "view", "temperature", "template", "prompt", "keep")
        return {name: getattr(self, name) for name in names} | {"types": sorted(self.types), "model": self.identity}

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """See `Backend`. Every item is sampled by itself, k sequences at once, from a seed of its own."""
        return [self._propose(item, k) for item in items]

    def _propose(self, item: Item, k: int) -> list[HallucinatedCaption]:
        record, index = item
        caption = caption_of(item)
        words = words_of(caption)
        kept = caption[: words[max(1, int(self.keep * len(words))) - 1].end] if words and self.keep else ""
        context = ImageContext(record, index, self.lexicon)
        made = []
        for rest, ended in self._sample(record, index, kept, k, len(words)):
            text = first_sentence(kept + rest, ended)
            if text is None:
                self.rejections["does not end"] += 1
                continue
            checked = check_text(context, text, f"{self.name}:{self.view}", most_changed=1.0)
            if isinstance(checked, str):
                self.rejections[checked] += 1
            elif checked.type not in self.types:
                self.rejections["another type"] += 1
            else:
                made.append(checked)
        return keep_different(made, k)

    def _asked(self, kept: str, with_image: bool) -> str:
        if self.template == "plain":
            prompt = f"{self.prompt}\n" if self.prompt else ""
            return f"{self._begin()}{self.processor.image_token if with_image else ''}{prompt}{kept}"
        content = [{"type": "text", "text": self.prompt}]
        content = [{"type": "image"}, *content] if with_image else content
        return (
            self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            + kept
        )

    def _begin(self) -> str:
        """The token that opens a text, where the tokenizer has one and does not write it by itself."""
        tokenizer = self.processor.tokenizer
        if tokenizer.bos_token_id is None or tokenizer.bos_token_id in tokenizer("a")["input_ids"]:
            return ""
        return tokenizer.bos_token

    def _sample(self, record: Record, index: int, kept: str, k: int, words: int) -> list[tuple[str, bool]]:
        """How k samples go on after `kept`, and whether each came to an end."""
        import torch

        image = self._seen(record)
        images = {} if image is None else {"images": [image]}
        inputs = self.processor(text=[self._asked(kept, image is not None)], return_tensors="pt", **images)
        inputs = inputs.to(self.device)
        key = hashlib.sha256(f"model/{self.seed}/{record.id}/{index}".encode()).digest()
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(int.from_bytes(key[:7], "big"))
            output = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=self.temperature,
                top_p=0.95,
                num_return_sequences=k,
                max_new_tokens=2 * words + 8,
            )
        # Decoded with what stands before, since a tokenizer may write the blank between two words with either.
        head, *whole = self.processor.batch_decode([inputs["input_ids"][0], *output], skip_special_tokens=True)
        new = output[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(new, torch.tensor(self._ends(), device=new.device)).any(dim=1)
        return [(text[len(head) :], bool(end)) for text, end in zip(whole, ended, strict=True)]

    def _ends(self) -> list[int]:
        own = self.model.generation_config.eos_token_id
        return [self.processor.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())]

    def _seen(self, record: Record):
        if self.view == "absent" or not record.images:
            return None
        from PIL import ImageFilter

        image = load_image(resolve_image(self.image_root, record.images[0]))
        return image.filter(ImageFilter.GaussianBlur(max(image.size) / 20))


def first_sentence(text: str, ended: bool) -> str | None:
    """The first sentence of a text that may have been cut off at a number of tokens, None where it was."""
    line, newline, _ = text.strip().partition("\n")
    sentence, stop, _ = line.partition(".")
    if stop:
        return sentence + stop
    return line.strip() if newline or ended else None
