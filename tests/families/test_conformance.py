"""Every family: what is captured and steered is what the stock model computes on each sequence alone.

`HACL_ALL_FAMILIES=1` runs them all; without it those of `CORE` do, which differ the most.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from hacl.representations import Sample
from hacl.representations.encoding import RowEncoder
from hacl.representations.parts import find_parts
from hacl.steering import MeanSteerer, steering
from tests.capture_cases import Case, largest_difference, run
from tests.families import build, chosen
from tests.families.facts import FACTS
from tests.tiny_families import draw_images, sentences

pytestmark = pytest.mark.slow
SELECT = ["predicts:red", "last_prompt", "mean_generated", "mean_image", "all"]


@pytest.fixture(scope="module", params=chosen())
def case(request, tmp_path_factory) -> Case:
    """Five rows of unlike lengths, with images of unlike shapes; the last has none where the family allows that."""
    facts = FACTS[request.param]
    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    images = draw_images(tmp_path_factory.mktemp("images"), [(48, 48), (96, 40), (40, 64), (48, 48)])
    texts = sentences(6)
    samples = [
        Sample(f"s{i}", image, texts[-1 - i], f"the {texts[2 * i % 6]} a red square", f"image-{i}")
        for i, image in enumerate([*images, None] if facts.text_alone else images)
    ]
    model.generation_config.suppress_tokens = [RowEncoder(processor).sequences.image_token_id]
    template = "plain" if request.param == "paligemma" or facts.answer_mask == "no template" else "chat"
    return Case(model, processor, samples, template, SELECT)


@pytest.mark.parametrize("mode", ["teacher_forced", "free"])
def test_a_left_padded_batch_gives_the_states_of_one_row_alone(case, mode, tmp_path):
    batched = run(case, tmp_path / "batched", batch_size=3, mode=mode, max_new_tokens=4)
    single = run(case, tmp_path / "single", batch_size=1, mode=mode, max_new_tokens=4)
    assert {row.selector for row in batched.rows} >= {"last_prompt", "mean_generated", "mean_image", "all"}
    assert largest_difference(batched, single) < 1e-4


def test_states_are_those_of_the_stock_model_at_the_position_that_the_row_names(case, tmp_path):
    store = run(case, tmp_path / "a", batch_size=3, select="all")
    encoder = RowEncoder(case.processor, template=case.template)
    for sample in case.samples[:2]:
        expected = stock_states(case, encoder.row(sample, sample.answer))
        kept = [row for row in store.rows if row.sample == sample.id]
        for name, states_TD in expected.items():
            wanted = states_TD[[row.position for row in kept]].numpy()
            np.testing.assert_allclose(store.read(name, [row.row for row in kept]), wanted, atol=1e-4)


def stock_states(case, row) -> dict[str, torch.Tensor]:
    """{layer: (T, D)} of one sequence alone, from hooks on the blocks of the stock model."""
    encoder, parts, found = RowEncoder(case.processor, template=case.template), find_parts(case.model), {}
    watched = {**{str(n): block for n, block in enumerate(parts.blocks)}, "final_norm": parts.final_norm}
    handles = [
        module.register_forward_hook(
            lambda _, args, output, name=name: found.update(
                {name: (output[0] if isinstance(output, tuple) else output)[0]}
            )
        )
        for name, module in watched.items()
    ]
    try:
        with torch.no_grad():
            case.model(**encoder.batch([row], torch.device("cpu"), torch.float32))
    finally:
        for handle in handles:
            handle.remove()
    return found


def test_states_of_a_generation_with_cache_are_those_of_one_pass_over_what_was_written(case, tmp_path):
    store = run(case, tmp_path / "free", batch_size=3, mode="free", max_new_tokens=4, select="all")
    encoder = RowEncoder(case.processor, template=case.template)
    for sample in case.samples[:2]:
        kept = [row for row in store.rows if row.sample == sample.id]
        words = case.processor.tokenizer.convert_ids_to_tokens([row.token_id for row in kept])
        prompt = encoder.row(sample, None)
        answer = encoder.row(sample, " ".join(words[prompt.prompt :]))
        if answer.ids[: len(kept)] != [row.token_id for row in kept]:
            continue  # the words do not come back as the same tokens
        expected = stock_states(case, answer)
        for name, states_TD in expected.items():
            found = store.read(name, [row.row for row in kept])
            np.testing.assert_allclose(found, states_TD[: len(kept)].numpy(), atol=1e-4)


def test_the_state_that_predicts_a_word_gives_the_models_logits_through_the_stored_readout(case, tmp_path):
    store = run(case, tmp_path / "a", select="predicts:red", batch_size=3)
    readout, encoder = store.readout(), RowEncoder(case.processor, template=case.template)
    assert len(store) == len(case.samples)
    for kept, sample in list(zip(store.rows, case.samples, strict=True))[:2]:
        with torch.no_grad():
            inputs = encoder.batch([encoder.row(sample, sample.answer)], torch.device("cpu"), torch.float32)
            expected = case.model(**inputs).logits[0, kept.position].numpy()
        np.testing.assert_allclose(
            readout.logits(store.read("final_norm", [kept.row])[0], normed=True), expected, atol=1e-3
        )


@pytest.mark.parametrize("policy", ["all", "generated", "image"])
def test_steered_replies_of_a_padded_batch_are_those_of_each_row_alone_with_and_without_cache(case, policy):
    parts, encoder = find_parts(case.model), RowEncoder(case.processor, template=case.template)
    vector_D = torch.randn(parts.hidden_size, generator=torch.Generator().manual_seed(0))
    rows = [encoder.row(sample, None) for sample in case.samples if sample.image is not None]

    def scores(chosen, **options):
        inputs = encoder.batch(chosen, torch.device("cpu"), torch.float32)
        inputs.pop("position_ids", None)
        made = case.model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            eos_token_id=None,
            pad_token_id=encoder.pad,
            **options,
        )
        return torch.stack(made.scores, 1)

    plain = scores(rows)
    with steering(case.model, MeanSteerer({0: vector_D}), alpha=3.0, policy=policy):
        together = scores(rows)
        alone = torch.cat([scores([row]) for row in rows])
        uncached = torch.cat([scores([row], use_cache=False) for row in rows[:2]])
    finite = torch.isfinite(alone)
    torch.testing.assert_close(together[finite], alone[finite], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(uncached[finite[:2]], alone[:2][finite[:2]], atol=2e-3, rtol=1e-3)
    first = 1 if policy == "generated" else 0  # the first new token is predicted before any new one is steered
    assert ((plain - together)[:, first:][finite[:, first:]]).abs().max() > 0.05
    assert torch.equal(scores(rows), plain), "afterwards the model is what it was"
