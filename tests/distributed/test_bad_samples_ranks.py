"""Unreadable samples on two ranks with loader workers: the run of one process, one count, and one stop for all."""

import json

import pytest

import train
from tests.distributed.test_deepspeed import TORCHRUN, launch, lines
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tiny_llava, tmp_path):
    """20 records: two damaged images, which fall to different ranks when images are checked, and one bad text."""
    records = write_tiny_records(tmp_path / "records", 16, text_only=4)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    rows[16]["conversations"][0]["value"] = "<image> <image> ?"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (3, 6):
        image = records.parent / f"images/{number}.png"
        image.write_bytes(image.read_bytes()[:60])
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {"path": str(tiny_llava)},
                "data": {"path": str(records), "template": "chat"},
                "train": {"max_steps": 7, "save_steps": 0, "scheduler": "constant", "warmup": 0, "num_workers": 1},
                "log": {"steps": 1},
            }
        ),
        encoding="utf-8",
    )
    return path


def test_two_ranks_replace_and_count_as_one_process_and_stop_together_above_the_share(settings, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    how = ("data.max_bad_fraction=0.2", "train.cache_text_states=false")
    assert train.main([str(settings), f"train.output_dir={one}", "train.per_device_batch_size=4", *how]) == 0
    launch(TORCHRUN, settings, f"train.output_dir={two}", "train.per_device_batch_size=2", *how)
    assert lines(two) == pytest.approx(lines(one), rel=1e-4)
    for reason, count in (("damaged_image", 2), ("bad_text", 1)):
        counted = lines(two, f"skipped/{reason}")
        assert counted == lines(one, f"skipped/{reason}") and counted[5] == count and counted[7] >= count
    three = tmp_path / "three"
    with pytest.raises(AssertionError) as stopped:
        launch(
            TORCHRUN, settings, f"train.output_dir={three}", "train.per_device_batch_size=2", *how,
            "data.max_bad_fraction=0.13",
        )  # fmt: skip
    said = str(stopped.value)
    assert "3 sample(s) could not be read (2 damaged_image, 1 bad_text)" in said and "is saved in" in said
    done = max(lines(three))
    assert done < 5 and (three / f"checkpoint-{done}/manifest.json").is_file(), "both ranks saved, then stopped"
