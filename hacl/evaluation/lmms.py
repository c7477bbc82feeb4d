"""Our models in lmms-eval (EvolvingLMMs-Lab/lmms-eval): a model class and the manifest that registers it.

lmms-eval finds packages by the entry-point group ``lmms_eval.models`` (docs/guides/model_guide.md at 059d63b6); the
entry point is ``hacl.evaluation.lmms:manifest``. lmms-eval is imported when it asks for the class, never before. Its
"simple" interface is used: a question, one image or none, and generation settings per request.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

MODEL_ID, CLASS = "hacl", "HaclLmms"
DEFAULT_NEW_TOKENS = 128


def manifest():
    """What lmms-eval's registry reads: ``--model hacl`` is the class below."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=f"{__name__}.{CLASS}")


def __getattr__(name: str):
    """The model class, made on first use, because its base class is lmms-eval's."""
    if name == CLASS:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    return type(CLASS, (_Adapter, lmms), {"__module__": __name__, "__doc__": _Adapter.__doc__})


class _Adapter:
    """``--model hacl --model_args pretrained=FOLDER,base=...,template=...,dtype=...``.

    pretrained: exported or stock folder, checkpoint, LoRA adapter, or hub:owner/name@REVISION (as in
    scripts/evaluate.py --model).
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        base: str | None = None,
        template: str = "auto",
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int | str = 1,
        **unread: Any,
    ):
        super().__init__()
        from accelerate import Accelerator

        from hacl.evaluation.runner.ranks import local_device
        from hacl.evaluation.runner.source import find_model

        wrong = sorted(set(unread) - {"max_batch_size"})  # lmms-eval always passes this one
        if wrong:
            raise ValueError(f"--model_args: no {wrong[0]!r}; there are pretrained, base, template, dtype, device")
        source = find_model(pretrained, base=base)
        self.processor = source.processor()
        self.template = source.template if template == "auto" else template
        if self.template is None:
            self.template = "chat" if getattr(self.processor, "chat_template", None) else "plain"
        self.batch_size = int(batch_size)
        self._model = source.load(dtype=dtype, device=local_device(device))
        self.accelerator = Accelerator(cpu=os.environ.get("CUDA_VISIBLE_DEVICES") == "" or device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One reply per request, cut at the first of its ``until`` strings; in the order of the requests."""
        from tqdm import tqdm

        groups: dict[tuple, list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault(_settings_key(request.args[1]), []).append(position)
        replies = [""] * len(requests)
        with tqdm(total=len(requests), desc="replies", disable=self.rank != 0) as bar:
            for positions in groups.values():
                generator = self._generator(requests[positions[0]].args[1])
                positions.sort(key=lambda n: len(requests[n].args[0]))
                for start in range(0, len(positions), self.batch_size):
                    batch = positions[start : start + self.batch_size]
                    for n, text in zip(batch, self._batch(generator, [requests[n].args for n in batch]), strict=True):
                        replies[n] = text
                        self.cache_hook.add_partial("generate_until", requests[n].args[:2], text)
                    bar.update(len(batch))
        return replies

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(loss, greedy) per request: mean negative log-likelihood of the target in nats per token.

        lmms-eval's tasks take the smallest value as the chosen answer (api/task.py, process_results), although its
        guide says log-probability; the models it ships return a loss, and so does this one.
        """
        from hacl.evaluation.likelihood import log_likelihoods

        found = []
        for request in requests:
            context, target, to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            text = target if isinstance(target, str) else target(doc)
            image = _one_image(to_visual(doc), task, doc_id)
            question = context.replace("<image>", "").strip()
            arguments = (self._model, self.processor, [image], [text])
            result = log_likelihoods(*arguments, prompt=question, template=self.template, batch_size=1)
            generator = self._generator({"max_new_tokens": int(result.tokens[0])})
            reply = generator.replies([image], [question])[0]
            found.append((-float(result.mean[0]), reply.text == text.strip()))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: dialogues over several rounds are not offered."""
        raise NotImplementedError("multi-round tasks are not offered by the hacl model")

    def _generator(self, settings: dict[str, Any]):
        from hacl.evaluation.generation import Generator
        from hacl.evaluation.runner.decoding import Decoding

        sampled = settings.get("do_sample", True) and (settings.get("temperature") or 0) > 0
        decoding = Decoding(
            max_new_tokens=int(settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS),
            temperature=float(settings["temperature"]) if sampled else 0.0,
            top_p=float(settings.get("top_p") or 1.0) if sampled else 1.0,
            top_k=int(settings.get("top_k") or 0) if sampled else 0,
            num_beams=int(settings.get("num_beams") or 1),
        )
        return Generator(self._model, self.processor, template=self.template, decoding=decoding)

    def _batch(self, generator, batch: Sequence[tuple]) -> list[str]:
        images, questions = [], []
        for context, _, to_visual, doc_id, task, split in batch:
            images.append(_one_image(to_visual(self.task_dict[task][split][doc_id]), task, doc_id))
            questions.append(context.replace("<image>", "").strip())
        names = [f"{task}/{split}/{doc_id}" for _, _, _, doc_id, task, split in batch]
        texts = [reply.text for reply in generator.replies(images, questions, names=names)]
        stops = batch[0][1].get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            texts = [text.split(stop)[0] for text in texts]
        return texts


def _settings_key(settings: dict[str, Any]) -> tuple:
    return tuple(sorted((key, str(value)) for key, value in settings.items()))


def _one_image(visuals: Any, task: str, doc_id: Any):
    """The request's image, upright RGB, or None. Raises ValueError for several, or for anything but an image."""
    from PIL import Image

    found = [visual for visual in (visuals or []) if visual is not None]
    if len(found) > 1:
        raise ValueError(f"{task}, document {doc_id}: {len(found)} images; the hacl model reads one")
    if found and not isinstance(found[0], Image.Image):
        raise ValueError(
            f"{task}, document {doc_id}: {type(found[0]).__name__} in place of an image; only images are read"
        )
    return found[0].convert("RGB") if found else None
