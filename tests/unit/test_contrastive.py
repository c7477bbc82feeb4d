import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hacl.losses.contrastive import contrastive_loss
from tests.reference.contrastive_batch import FEATURES, drop_some, loop_samples, random_batch, with_gradients
from tests.reference.contrastive_loop import contrastive_loop

LOG_INVERSE_TEMPERATURE = torch.tensor([math.log(1 / 0.3)], dtype=torch.float64)

OPTIONS = {
    "plain": {},
    "log_sum": {"positives": "log_sum"},
    "exclude_other_positives": {"exclude_other_positives": True},
    "identities_ignored": {"mask_false_negatives": False},
    "hard_weight": {"hard_weight": 2.5, "hard_margin": 0.2},
    "hard_weight_zero": {"hard_weight": 0.0},
    "further_terms": {"t2i_hard_weight": 0.3, "text_margin_weight": 0.7, "text_margin": 0.1},
}


def both(batch, **options):
    """Loss, report and gradients of (images, captions, hallucinated captions, temperature), ours and the loop's."""
    results = []
    for loss_of in (
        lambda batch, scale: contrastive_loss(*(batch[n] for n in FEATURES), scale, **labels(batch), **options),
        lambda batch, scale: contrastive_loop(loop_samples(batch), scale, **options),
    ):
        leaves = with_gradients(batch)
        scale = LOG_INVERSE_TEMPERATURE.clone().requires_grad_()
        loss, report = loss_of(leaves, scale)
        loss.backward()
        gradients = [x.grad if x.grad is not None else torch.zeros_like(x) for x in [*map(leaves.get, FEATURES), scale]]
        results.append((loss.detach(), report, gradients))
    return results


def labels(batch):
    return {name: value for name, value in batch.items() if name not in FEATURES}


def loss_and_report(batch, scale=LOG_INVERSE_TEMPERATURE, **options):
    return contrastive_loss(*(batch[n] for n in FEATURES), scale, **labels(batch), **options)


def assert_same(ours, loop):
    (loss, report, gradients), (loop_loss, loop_report, loop_gradients) = ours, loop
    torch.testing.assert_close(loss, loop_loss, rtol=1e-10, atol=1e-12)
    for gradient, loop_gradient in zip(gradients, loop_gradients, strict=True):
        torch.testing.assert_close(gradient, loop_gradient, rtol=1e-8, atol=1e-12)
    assert report.keys() == loop_report.keys()
    for name, (total, count) in loop_report.items():
        assert int(report[name][1]) == count, name
        assert float(report[name][0]) == pytest.approx(total, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("K", "scope"), [(0, "own"), *itertools.product((1, 3), ("own", "local", "global"))])
def test_loss_gradients_and_report_equal_the_loop(K, scope, options):
    batch = random_batch(K, B=5, C=2, K=K, images=4, texts=6)
    assert_same(*both(batch, hard_scope=scope, **options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_masked_entries_are_ignored_like_in_the_loop(seed, options):
    batch = drop_some(random_batch(seed, B=6, C=3, K=2, images=5, texts=9), seed)
    assert_same(*both(batch, hard_scope=("own", "local", "global")[seed % 3], **options))


def test_what_masked_entries_hold_changes_nothing():
    batch = drop_some(random_batch(0, B=6, C=2, K=2), 0)
    spoilt = dict(batch)
    for name, mask in zip(FEATURES, ("image_mask_B", "caption_mask_BC", "hallucinated_mask_BK"), strict=True):
        spoilt[name] = torch.where(batch[mask][..., None], batch[name], float("nan"))
    for options in OPTIONS.values():
        clean, spoilt_leaves = with_gradients(batch), with_gradients(spoilt)
        loss, _ = loss_and_report(clean, **options)
        spoilt_loss, _ = loss_and_report(spoilt_leaves, **options)
        assert torch.equal(loss, spoilt_loss)
        loss.backward()
        spoilt_loss.backward()
        for name in FEATURES:
            assert torch.equal(clean[name].grad, spoilt_leaves[name].grad), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_without_any_anchor_gives_zero_and_zero_gradients(options):
    batch = with_gradients(random_batch(0, B=3, C=2, K=1))
    batch["image_mask_B"] = torch.zeros(3, dtype=torch.bool)
    scale = LOG_INVERSE_TEMPERATURE.clone().requires_grad_()
    loss, report = loss_and_report(batch, scale, **options)
    loss.backward()
    assert loss == 0
    assert all(count == 0 for _, count in report.values())
    for leaf in [*map(batch.get, FEATURES), scale]:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_empty_batch_gives_zero_with_a_graph(options):
    batch = with_gradients(random_batch(0, B=0, C=1, K=1))
    loss, _ = loss_and_report(batch, hard_scope="global", **options)
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("scope", ["own", "local", "global"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_pass_gradcheck(scope, options):
    batch = drop_some(random_batch(3, B=4, C=2, K=2, P=3, images=3, texts=5), 3, share=0.2)

    def loss_of(image, caption, hallucinated, scale):
        features = dict(zip(FEATURES, (image, caption, hallucinated), strict=True))
        return loss_and_report(batch | features, scale, hard_scope=scope, **options)[0]

    leaves = with_gradients(batch)
    scale = LOG_INVERSE_TEMPERATURE.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (*map(leaves.get, FEATURES), scale))


def test_the_released_formula_is_local_scope_without_identities():
    """Soft targets on the main diagonal; image to text over captions and all hallucinated captions of the batch."""
    batch = random_batch(1, B=6, C=1, K=1, dtype=torch.float32, images=2, texts=2)
    image, text, hallucinated = (F.normalize(batch[name].reshape(6, -1), dim=1) for name in FEATURES)
    temperature = 0.07
    sim_i2t = image @ torch.cat([text, hallucinated]).t() / temperature
    sim_t2i = text @ image.t() / temperature
    target_i2t, target_t2i = torch.zeros_like(sim_i2t), torch.zeros_like(sim_t2i)
    target_i2t.fill_diagonal_(1)
    target_t2i.fill_diagonal_(1)
    released_i2t = -(F.log_softmax(sim_i2t, dim=1) * target_i2t).sum(1).mean()
    released_t2i = -(F.log_softmax(sim_t2i, dim=1) * target_t2i).sum(1).mean()

    scale = torch.tensor([-math.log(temperature)])
    loss, report = loss_and_report(batch, scale, hard_scope="local", mask_false_negatives=False)
    torch.testing.assert_close(loss, (released_i2t + released_t2i) / 2)
    torch.testing.assert_close(report["i2t"][0] / 6, released_i2t)
    torch.testing.assert_close(report["t2i"][0] / 6, released_t2i)


def test_without_hallucinated_captions_the_loss_is_open_clips():
    from open_clip import ClipLoss

    batch = random_batch(2, B=7, C=1, K=0, P=16, dtype=torch.float32)
    scale = torch.tensor([math.log(1 / 0.07)])
    image, caption = (F.normalize(batch[name].reshape(7, 16), dim=1) for name in FEATURES[:2])
    loss, _ = loss_and_report(batch, scale)
    torch.testing.assert_close(loss, ClipLoss()(image, caption, scale.exp()))


def test_with_one_positive_every_form_is_info_nce():
    batch = random_batch(4, B=5, C=1, K=2)
    plain, _ = loss_and_report(batch)
    for options in ({"positives": "log_sum"}, {"exclude_other_positives": True}, {"mask_false_negatives": False}):
        torch.testing.assert_close(loss_and_report(batch, **options)[0], plain, rtol=1e-12, atol=0)


def test_captions_of_the_same_image_are_positives_and_equal_texts_leave_the_denominator():
    batch = random_batch(5, B=4, C=1, K=0)
    batch["image_ids_B"] = torch.tensor([8, 8, 3, 4])
    batch["caption_keys_BC"] = torch.tensor([[1], [2], [2], [5]])
    _, report = loss_and_report(batch)
    assert int(report["positive_similarity"][1]) == 2 + 2 + 1 + 1
    # Image 8 has texts 1 and 2, so the text 2 of image 3 is no negative of it: 1 negative each for both its rows. Image
    # 3 has text 2, so the text 2 of image 8 leaves too: 2 negatives. Image 4 keeps all 3.
    assert int(report["negative_similarity"][1]) == 1 + 1 + 2 + 3


@pytest.mark.parametrize(("scope", "left"), [("own", [1, 0, 1]), ("local", [1, 1, 3]), ("global", [1, 1, 3])])
def test_a_hallucinated_caption_that_is_a_caption_of_the_image_leaves_the_denominator(scope, left):
    batch = random_batch(5, B=3, C=1, K=1)
    batch["image_ids_B"] = torch.tensor([8, 8, 3])
    batch["caption_keys_BC"] = torch.tensor([[1], [2], [4]])
    batch["hallucinated_keys_BK"] = torch.tensor([[9], [1], [2]])
    # Image 8 has captions 1 and 2: it keeps 9 alone, of its first row. Image 3 has caption 4 and keeps all.
    for row, (hard, captions) in enumerate(zip(left, [1, 1, 2], strict=True)):
        alone = dict(batch)
        alone["image_mask_B"] = torch.arange(3) == row
        _, report = loss_and_report(alone, hard_scope=scope)
        assert int(report["effective_negatives"][0]) == hard + captions, row
    _, report = loss_and_report(batch, hard_scope=scope)
    assert int(report["hard_similarity"][1]) == 2


def test_without_keys_or_with_identities_ignored_every_hallucinated_caption_stays():
    batch = random_batch(5, B=4, C=1, K=2, images=2, texts=3)
    keyless = {name: value for name, value in batch.items() if name != "hallucinated_keys_BK"}
    assert_same(*both(keyless, hard_scope="global"))
    _, report = loss_and_report(keyless, hard_scope="global")
    _, keyed_report = loss_and_report(batch, hard_scope="global")
    assert int(report["hard_similarity"][1]) == 8 > int(keyed_report["hard_similarity"][1])
    ignored, _ = loss_and_report(batch, hard_scope="global", mask_false_negatives=False)
    assert torch.equal(ignored, loss_and_report(keyless, hard_scope="global", mask_false_negatives=False)[0])


def test_bf16_features_are_upcast_before_they_are_normalised():
    batch = random_batch(6, B=8, C=1, K=1, P=64, dtype=torch.bfloat16)
    scale = torch.tensor([math.log(1 / 0.01)])
    loss, report = loss_and_report(batch, scale)
    upcast, _ = loss_and_report(batch | {name: batch[name].float() for name in FEATURES}, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = loss_and_report(batch, scale)
    assert loss.dtype == torch.float32 == report["i2t"][0].dtype
    assert torch.equal(loss, upcast)
    assert torch.equal(loss, under_autocast)


def test_report_values_are_those_planted():
    turn = math.radians
    unit = [[math.cos(turn(a)), math.sin(turn(a))] for a in (0, 90)]
    caption = [[[math.cos(turn(a)), math.sin(turn(a))]] for a in (10, 80)]
    hallucinated = [[[math.cos(turn(a)), math.sin(turn(a))] for a in pair] for pair in ((20, 5), (60, 30))]
    batch = random_batch(0, B=2, C=1, K=2, P=2) | {
        "image_BP": torch.tensor(unit, dtype=torch.float64) * 7,
        "caption_BCP": torch.tensor(caption, dtype=torch.float64) * 3,
        "hallucinated_BKP": torch.tensor(hallucinated, dtype=torch.float64) / 5,
    }
    _, report = loss_and_report(batch)
    mean = {name: float(total / count) for name, (total, count) in report.items()}
    assert mean["positive_similarity"] == pytest.approx(math.cos(turn(10)))
    assert mean["negative_similarity"] == pytest.approx(math.cos(turn(80)))
    assert mean["hard_similarity"] == pytest.approx(sum(math.cos(turn(a)) for a in (20, 5, 30, 60)) / 4)
    assert mean["hard_negative_win_rate"] == 3 / 4
    assert mean["i2t_top1"] == 1 / 2
    assert mean["t2i_top1"] == 1
    assert mean["effective_negatives"] == 3


def test_collapsed_features_win_nothing():
    batch = {name: torch.ones_like(value) for name, value in random_batch(0, B=3).items() if name in FEATURES}
    _, report = loss_and_report(random_batch(0, B=3) | batch)
    assert report["hard_negative_win_rate"][0] == report["i2t_top1"][0] == report["t2i_top1"][0] == 0


def test_training_on_the_loss_separates_true_from_hallucinated_captions():
    batch = with_gradients(random_batch(7, B=8, C=1, K=2, dtype=torch.float32))
    optimizer = torch.optim.Adam([batch[name] for name in FEATURES], lr=0.05)
    scale = torch.tensor([math.log(1 / 0.1)])
    win_rates = []
    for _ in range(60):
        loss, report = loss_and_report(batch, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = report["hard_negative_win_rate"]
        win_rates.append(float(total / count))
    assert win_rates[0] < 0.8
    assert win_rates[-1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hard_scope": "batch"}, "hard_scope is 'batch'; use one of own, local, global"),
        ({"positives": "mean"}, "positives is 'mean'"),
        ({"positives": "log_sum", "exclude_other_positives": True}, "exclude_other_positives needs"),
        ({"hard_weight": -1.0}, "hard_weight is -1.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_and_report(random_batch(0, B=2), **options)


@pytest.mark.parametrize("name", [n for n in random_batch(0, B=3) if n != "image_BP"])
def test_shapes_that_do_not_belong_together_are_named(name):
    batch = random_batch(0, B=3)
    batch[name] = batch[name][:2]
    with pytest.raises(ValueError, match=f"{name} has shape"):
        loss_and_report(batch)
