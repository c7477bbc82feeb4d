"""Promises about texts that nothing comes before: no BOS, no prompt, no image."""

from __future__ import annotations

import pytest
import torch

from hacl.compare.forced import Side, forced_batches, forced_log_likelihoods
from hacl.compare.sequential import forced_states
from hacl.evaluation.generation import Generator
from hacl.evaluation.likelihood import log_likelihoods
from hacl.representations.encoding import RowEncoder
from hacl.representations.samples import Sample
from tests.tiny_families import tiny_qwen_model

TEXTS = ["a red square", "the image is a blue circle and more than the other text", "no"]
BLIND = [Sample(f"s{number}", None, "") for number in range(len(TEXTS))]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model, processor = tiny_qwen_model(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 8  # tokens see each other
    processor.tokenizer.bos_token = None
    assert processor.tokenizer.bos_token_id is None
    return model.eval(), processor


@torch.no_grad()
def stock(tiny, text):
    """Sum of log p of a text's tokens with EOS, the first aside, by one forward pass, and how many they are."""
    model, processor = tiny
    ids = torch.tensor([[*processor.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    ids = torch.cat([ids, torch.tensor([[processor.tokenizer.eos_token_id]])], dim=1)
    scores = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
    return float(scores[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum()), ids.shape[1] - 1


def test_a_blind_text_scores_the_same_alone_and_beside_a_longer_one(tiny):
    wanted = [stock(tiny, text) for text in TEXTS]
    beside = log_likelihoods(*tiny, [None] * len(TEXTS), TEXTS)
    forced = forced_log_likelihoods(Side(*tiny), BLIND, TEXTS)
    for row, (total, tokens) in enumerate(wanted):
        alone = log_likelihoods(*tiny, [None], TEXTS[row : row + 1])
        for found, place in ((beside, row), (forced, row), (alone, 0)):
            assert found.tokens[place] == tokens
            assert found.total[place] == pytest.approx(total, abs=1e-3)


def test_states_of_a_blind_text_are_those_of_the_row_alone(tiny):
    side = Side(*tiny)
    for positions in ("answer", "last_prompt"):
        found, owner = forced_states(side, BLIND, TEXTS, [1], positions=positions)
        for row, sample in enumerate(BLIND):
            alone, _ = forced_states(side, [sample], TEXTS[row : row + 1], [1], positions=positions)
            torch.testing.assert_close(
                torch.tensor(found[1][owner == row]), torch.tensor(alone[1]), atol=1e-4, rtol=1e-4
            )


def test_a_text_of_one_token_that_nothing_comes_before_has_no_likelihood(tiny):
    found = log_likelihoods(*tiny, [None], [""])
    assert (found.total[0], found.tokens[0]) == (0.0, 0)
    with pytest.raises(ValueError, match="'s0': its text has no token"):
        forced_batches(Side(*tiny), BLIND[:1], [""], 1)


def test_a_prompt_without_a_token_is_refused(tiny):
    with pytest.raises(ValueError, match="empty prompt without an image"):
        Generator(*tiny).replies([None], [""])
    with pytest.raises(ValueError, match="sample 's0': no token"):
        RowEncoder(tiny[1]).row(BLIND[0], None)
