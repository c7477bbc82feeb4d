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

_PROMPT = "Describe the image in one short sentence."


class ModelBackend:
    """model: folder of a multimodal model and its processor; image_root: where records' images are; view: "absent"
    (no image) or "blurred"; keep: share of the caption's words that the model goes on from."""

    name = "model"
    is_local_cpu = False
    options: ClassVar[tuple[BackendOption, ...]] = (
        BackendOption("model", "folder of a multimodal model (required)"),
        BackendOption("image_root", "folder that image paths start from (required with view=blurred)"),
        BackendOption("view", "what the model sees", "absent", choices=("absent", "blurred")),
        BackendOption("temperature", "of the sampling", 1.2, float),
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
        if not 0 <= keep < 1 or temperature <= 0:
            raise ValueError("backend model: keep must be in [0, 1) and temperature positive")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoProcessor.from_pretrained(model, local_files_only=True)
        self.model = AutoModelForImageTextToText.from_pretrained(model, local_files_only=True).to(self.device).eval()
        self.identity = (
            f"{Path(model).name} {hashlib.sha256((Path(model) / 'config.json').read_bytes()).hexdigest()[:12]}"
        )
        self.image_root = None if image_root is None else Path(image_root)
        self.view, self.temperature, self.keep = view, temperature, keep
        self.seed, self.types = seed, checked_types(types)
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.rejections: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        names = ("seed", "view", "temperature", "keep")
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
        for rest in self._sample(record, index, kept, k, len(words)):
            text = f"{kept} {rest.strip()}".strip().split("\n")[0]
            end = text.find(".")
            text = text[: end + 1] if 0 < end else text
            checked = check_text(context, text, f"{self.name}:{self.view}", most_changed=1.0)
            if isinstance(checked, str):
                self.rejections[checked] += 1
            elif checked.type not in self.types:
                self.rejections["another type"] += 1
            else:
                made.append(checked)
        return keep_different(made, k)

    def _sample(self, record: Record, index: int, kept: str, k: int, words: int) -> list[str]:
        import torch

        image = self._seen(record)
        content = [{"type": "text", "text": _PROMPT}]
        content = content if image is None else [{"type": "image"}, *content]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = {} if image is None else {"images": [image]}
        inputs = self.processor(text=[text + kept], return_tensors="pt", **images).to(self.device)
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
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)

    def _seen(self, record: Record):
        if self.view == "absent" or not record.images:
            return None
        from PIL import ImageFilter

        image = load_image(resolve_image(self.image_root, record.images[0]))
        return image.filter(ImageFilter.GaussianBlur(max(image.size) / 20))
