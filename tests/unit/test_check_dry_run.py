"""Promises of the script that holds a dry run against real steps: both count the same samples."""

import pytest

from hacl.config import Config, load_config
from hacl.training import run
from scripts import check_dry_run
from tests.tiny import write_tiny_records


@pytest.mark.parametrize(
    "batch, chunk, steps, records, sizes",
    [(9, 4, 2, 100, [4, 4, 1, 4, 4, 1]), (8, 8, 2, 100, [8, 8]), (8, 4, 1, 5, [4, 1]), (4, 4, 4, 9, [4, 4])],
)
def test_a_step_runs_the_samples_it_has_the_last_chunk_being_smaller(batch, chunk, steps, records, sizes):
    config = Config()
    config.train.per_device_batch_size, config.train.gradient_accumulation_steps = batch, steps
    config.train.grad_cache, config.train.grad_cache_chunk = True, chunk
    chunks = check_dry_run.chunks_of_step(config, records)
    assert [len(part) for part in chunks] == sizes
    assert [index for part in chunks for index in part] == list(range(sum(sizes)))


def test_the_predicted_work_of_a_step_is_that_of_its_samples(tiny_llava, tmp_path):
    path, work = write_tiny_records(tmp_path, 12), []
    how = [f"model.path={tiny_llava}", f"data.path={path}", "train.grad_cache=true", "train.grad_cache_chunk=4"]
    for batch in (8, 9):
        config = load_config(None, [*how, f"train.per_device_batch_size={batch}"])
        work.append(check_dry_run.predict(config, run.read_inputs(config))[1])
    assert work[1] == pytest.approx(9 / 8 * work[0])
