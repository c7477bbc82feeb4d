"""Promises about what a behaviour recovery may look at: settings are chosen on some images, confirmed on others."""

from __future__ import annotations

import pytest

from hacl.compare import behaviour
from hacl.compare.behaviour import behaviour_recovery
from hacl.compare.behaviour_report import BehaviourReport, VariantResult
from hacl.compare.behaviour_tasks import Tasks
from hacl.compare.divergence import Setting
from hacl.compare.recovery_fraction import Fraction
from hacl.evaluation.statistics import Interval
from hacl.steering import MeanSteerer
from tests.reference.planted_tuning import LAYER, constant, make_world, tuned_by


@pytest.fixture(scope="module")
def world(tiny_llava, tmp_path_factory):
    return make_world(tiny_llava, tmp_path_factory.mktemp("world"), count=8)


def recover(world, samples, **options):
    tuned = tuned_by(world, lambda h: h + constant())
    steerers = {"bias": MeanSteerer({LAYER: constant()})}
    settings = {"alphas": [0.5, 1.0], "random_draws": 1, "draws": 50, "progress": False}
    return behaviour_recovery(world.original, tuned, world.processor, samples, steerers, **settings | options)


def test_settings_are_chosen_on_validation_images_alone_and_confirmed_on_the_others(world, monkeypatch):
    seen, real = [], behaviour.divergence

    def watch(first, second, samples, texts, steerers, settings, **options):
        seen.append(({sample.group for sample in samples}, len(settings)))
        return real(first, second, samples, texts, steerers, settings, **options)

    monkeypatch.setattr(behaviour, "divergence", watch)
    report = recover(world, world.samples, select_on=["0", "1", "2"])
    (chosen_on, tried), (confirmed_on, confirmed) = seen
    assert chosen_on == {"0", "1", "2"} and confirmed_on == {s.group for s in world.samples} - chosen_on
    assert (tried, confirmed) == (2, len(report.variants)) and len(report.curve) == 2


@pytest.mark.parametrize("part", ["captions", "margins", "questions"])
def test_nothing_is_asked_about_an_image_that_the_vectors_were_estimated_on(world, part):
    rest = [sample for sample in world.samples if sample.group != "3"]
    tasks = Tasks(**{part: getattr(world.tasks, part)})
    with pytest.raises(ValueError, match="'3' .* used to estimate"):
        recover(world, rest, tasks=tasks, fitted_on=["3"])


def result(name, role, share):
    interval = Interval(share, share - 0.1, share + 0.1, 1, 20)
    return VariantResult(name, role, Setting(name, 1.0), Fraction(interval, interval, 1.0, 0.0, 1 - share))


def test_a_control_that_does_as_well_fails_the_gate_and_a_weaker_one_does_not():
    chosen = result("global", "chosen", 0.5)
    weak, equal = result("control/random_0", "control", 0.49), result("control/random_1", "control", 0.5)
    assert BehaviourReport(variants=[chosen, weak]).gate_failures() == []
    failures = BehaviourReport(variants=[chosen, weak, equal]).gate_failures()
    assert len(failures) == 1 and failures[0].startswith("control/random_1 closes 50 %")
    nothing = BehaviourReport(variants=[result("global", "chosen", 0.05)])
    assert nothing.exit_code == 1 and "not above 0 beyond noise" in nothing.gate_failures()[0]
