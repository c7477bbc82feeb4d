"""Promises about the tokens of images that are kept by size, and about processors that are not known."""

import pytest
from PIL import Image
from transformers import AutoProcessor

from hacl.data.image_formats import FORMATS, ImageText
from hacl.data.image_tokens import KeptTokens
from hacl.data.templates import SequenceEncoder
from tests.families import build


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    return AutoProcessor.from_pretrained(build("internvl", tmp_path_factory.mktemp("internvl")))


@pytest.fixture
def gemma3(tmp_path):
    return AutoProcessor.from_pretrained(build("gemma3", tmp_path))


def counting(processor, monkeypatch) -> list:
    """Grows with every call of the processor."""
    calls, whole = [], type(processor).__call__

    def call(self, *args, **kwargs):
        calls.append(kwargs)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", call)
    return calls


def test_an_image_makes_as_many_tiles_as_its_tokens_say_where_only_the_processor_cuts_tiles(internvl):
    assert internvl.image_processor.crop_to_patches is False, "as published checkpoints, which store no such field"
    images = ImageText(internvl)
    for size in ((64, 48), (32, 32), (96, 40)):
        tiles = images.tensors(Image.new("RGB", size))["pixel_values"]
        assert images.ids(size).count(images.token_id) == 4 * len(tiles)
    assert len(images.tensors(Image.new("RGB", (64, 48)))["pixel_values"]) > 1


def test_an_open_image_is_processed_once_for_tensors_and_tokens(internvl, monkeypatch):
    expected = ImageText(internvl).ids((64, 48))
    images, calls = ImageText(internvl), counting(internvl, monkeypatch)
    images.tensors(Image.new("RGB", (64, 48)))
    assert images.ids((64, 48)) == expected and len(calls) == 1
    images.ids((48, 64))
    assert len(calls) == 2


def test_pan_and_scan_of_gemma_3_follows_its_processor_and_is_refused_where_that_asks_for_it(gemma3):
    gemma3.image_processor.do_pan_and_scan = True
    image = Image.new("RGB", (600, 300))
    images = ImageText(gemma3)
    stock = gemma3(images=[[image]], text=[gemma3.boi_token])
    assert stock["input_ids"][0].count(images.token_id) == images.num_tokens
    assert len(images.tensors(image)["pixel_values"]) == 1
    gemma3.images_kwargs = {**gemma3.images_kwargs, "do_pan_and_scan": True}
    with pytest.raises(ValueError, match="pan and scan.* do_pan_and_scan to false"):
        images.tensors(image)


def test_the_tokens_asked_for_least_recently_go_first():
    kept = KeptTokens(room=4 * 10)
    for key in range(4):
        kept.put(key, {"input_ids": [key] * 2, "types": [1]})
        assert kept.get(0, "input_ids") == [0, 0]
    assert [key in kept for key in range(4)] == [True, False, True, True]
    assert kept.get(3, "types") == [1]
    kept.put("large", {"input_ids": list(range(50))})
    assert len(kept) == 1 and kept.get("large", "input_ids") == list(range(50))


def test_an_unknown_processor_is_refused_with_the_known_ones(internvl, monkeypatch):
    monkeypatch.delitem(FORMATS, "InternVLProcessor")
    with pytest.raises(ValueError, match="InternVLProcessor .* not known; .*LlavaProcessor.* docs/adding_a_family.md"):
        SequenceEncoder(internvl, template="plain", prompt="", max_length=64, max_caption_length=64)
