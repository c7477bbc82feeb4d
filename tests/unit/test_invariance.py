"""How a step is cut and computed does not change the trajectory: one process. Several ranks: tests/distributed."""

import pytest

from tests.tiny import write_tiny_records
from tests.trajectories import GENERATION_ALONE, RECORDS, assert_same, cut, trajectory

pytestmark = pytest.mark.slow
WHOLE, CACHED = cut(12), "train.grad_cache=true"
# Class: (reference, cases that have its trajectory).
CLASSES = {
    "generation and contrast": (
        WHOLE,
        {
            "three micro-batches of one contrastive batch": [*cut(4), CACHED],
            "a batch in chunks of unequal size": [*WHOLE, CACHED, "train.grad_cache_chunk=5"],
            "micro-batches in chunks, recomputed": [
                *cut(6), CACHED, "train.grad_cache_chunk=4", "train.gradient_checkpointing=true",
            ],
            "recomputed activations": [*WHOLE, "train.gradient_checkpointing=true"],
            "data loader workers": [*WHOLE, "train.num_workers=2"],
            "shared caption prefixes": [*WHOLE, "objective.share_prefixes=true"],
        },
    ),
    "generation alone": (
        [*WHOLE, *GENERATION_ALONE],
        {
            "four micro-batches": [*cut(3), *GENERATION_ALONE],
            "micro-batches of one sample": [*cut(1), *GENERATION_ALONE],
        },
    ),
    "steps of similar length": (
        [*WHOLE, *GENERATION_ALONE, "train.grouping=length"],
        {"four micro-batches": [*cut(3), *GENERATION_ALONE, "train.grouping=length"]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_tiny_records(tmp_path_factory.mktemp("records"), **RECORDS)


@pytest.fixture(scope="module")
def reference(tiny_llava, records, tmp_path_factory):
    """name of a class -> its trajectory, computed once."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = trajectory(tiny_llava, records, tmp_path_factory.mktemp("run") / "run", CLASSES[name][0])
        return known[name]

    return of


@pytest.mark.parametrize("name, case", [(name, case) for name, (_, cases) in CLASSES.items() for case in cases])
def test_a_step_computed_otherwise_has_the_same_trajectory(reference, tiny_llava, records, tmp_path, name, case):
    assert_same(trajectory(tiny_llava, records, tmp_path / "run", CLASSES[name][1][case]), reference(name))


def test_without_grad_cache_each_micro_batch_is_its_own_contrastive_batch(reference, tiny_llava, records, tmp_path):
    with pytest.raises(AssertionError):
        assert_same(trajectory(tiny_llava, records, tmp_path / "run", cut(4)), reference("generation and contrast"))
