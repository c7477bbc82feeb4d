"""Steering under teacher forcing is the stock forward pass of each row under the same session, by family."""

from __future__ import annotations

import pytest
import torch

from hacl.compare.forced import ForcedReader, Side, forced_batches
from hacl.representations.samples import Sample
from hacl.steering import MeanSteerer, steering
from tests.families import chosen

FAMILIES_HERE = chosen()

TEXTS = ("a red square on the left", "no")
PROMPT = "describe the image ."
POLICIES = ("all", "image", "text")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_steered_batch_is_the_steered_forward_pass_of_each_row(family, policy, tmp_path):
    paths = [tmp_path / f"{row}.png" for row in range(2)]
    for path, image in zip(paths, family.images, strict=True):
        image.save(path)
    samples = [Sample(str(row), path, PROMPT, None, str(row)) for row, path in enumerate(paths)]
    side = Side(family.model, family.processor, template=family.template)
    width = family.model.config.get_text_config().hidden_size
    steerer = MeanSteerer({0: torch.linspace(-1, 1, width)})
    (batch,) = forced_batches(side, samples, TEXTS, 2)
    with side.open() as device:
        reader = ForcedReader(side, device)
        embedded = reader.embed(batch)
        plain = reader.log_probs(batch, embedded)
        session = steering(family.model, steerer, policy=batch.policy(policy))
        with session, session.rows(prompt_lengths=batch.prompts):
            found = reader.log_probs(batch, embedded)
    assert not torch.equal(found, plain)
    for row, sample in enumerate(batch.samples):
        sequence, image = batch.sequences[row], family.images[int(sample.id)]
        ids = torch.tensor([sequence.ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= side.encoder.images.tensors(image, prompt=PROMPT)
        inputs |= family.token_types(ids, batch.prompts[row])
        alone = policy if policy not in ("image", "text") else (ids == family.image_id) == (policy == "image")
        with torch.no_grad(), steering(family.model, steerer, policy=alone) as s, s.rows(
            prompt_lengths=[batch.prompts[row]]
        ):  # fmt: skip
            seen = []
            norm = family.decoder.get_submodule(family.facts.norm)
            hook = norm.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output[0]))
            with mask_of(s, inputs["attention_mask"]):
                family.model(**inputs)
            hook.remove()
        logits = reader.adapter.logits(seen[0][[t - 1 for t in sequence.predicted]])
        expected = torch.log_softmax(logits.float(), dim=-1)
        torch.testing.assert_close(found[batch.labels[:, 0] == row], expected, atol=2e-3, rtol=1e-3)


def mask_of(session, mask):
    """The stock forward pass hands its decoder a mask of the family's own, too."""
    return session._tracker.attending(mask)
