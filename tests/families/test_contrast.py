"""Visual contrastive decoding, by family: its second stream is the model itself, and a batch changes no reply."""

from __future__ import annotations

import torch

from hacl.evaluation.generation import Generator
from hacl.evaluation.runner.decoding import Decoding, VisualContrast
from hacl.evaluation.visual_contrastive import VisualContrastProcessor, distorted
from tests.families import chosen

FAMILIES_HERE = chosen()

PROMPTS = ["describe the image .", "what is on the left"]
CPU = torch.device("cpu")


def generator(family, **settings) -> Generator:
    return Generator(family.model, family.processor, template=family.template, decoding=Decoding(**settings))


@torch.no_grad()
def test_an_undistorted_second_stream_is_the_model_itself(family):
    """The logits of every step are those that `generate` has, in a padded batch, behind a growing cache."""
    asked = generator(family)
    inputs = asked.inputs(family.images, PROMPTS, CPU)
    stream = VisualContrastProcessor(family.model, VisualContrast(), inputs)
    gaps = []

    def compare(ids, scores):
        own = torch.where(scores.isfinite(), scores, 0.0)  # EOS is barred
        gaps.append(float(torch.where(scores.isfinite(), stream._next_logits(ids) - own, 0.0).abs().max()))
        return scores

    family.model.generate(
        **inputs,
        logits_processor=[compare],
        do_sample=False,
        max_new_tokens=3,
        min_new_tokens=3,
        pad_token_id=asked.pad,
    )
    assert len(gaps) == 3 and max(gaps) < 1e-3


def test_a_row_beside_it_changes_no_reply(family):
    asked = generator(family, vcd=VisualContrast(1.0, 0.0, 700), max_new_tokens=4)
    together = [reply.ids for reply in asked.replies(family.images, PROMPTS)]
    rows = zip(family.images, PROMPTS, strict=True)
    assert together == [asked.replies([image], [prompt])[0].ids for image, prompt in rows]


def test_noise_is_in_every_picture_and_not_in_what_pads_it(family):
    asked = generator(family)
    for image, prompt in zip(family.images, PROMPTS, strict=True):
        tensors = asked.encoder.images.tensors(image, prompt=prompt)
        noised = distorted(tensors, 999)
        changed = {name for name in tensors if not torch.equal(noised[name], tensors[name])}
        assert changed == {"pixel_values", "high_res_pixel_values"} & set(tensors)
        if "pixel_attention_mask" in tensors:
            pads = (tensors["pixel_attention_mask"] == 0).unsqueeze(-3).expand_as(tensors["pixel_values"])
            assert torch.equal(noised["pixel_values"][pads], tensors["pixel_values"][pads])
