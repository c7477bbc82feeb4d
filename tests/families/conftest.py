"""Each family in turn, built and loaded once a session."""

import pytest

from tests.families import MULTIMODAL, build
from tests.families.facts import FACTS, SHAPES
from tests.families.loaded import Family
from tests.tiny_families import draw_images


@pytest.fixture(scope="session", params=MULTIMODAL)
def family(request, tmp_path_factory) -> Family:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    paths = draw_images(tmp_path_factory.mktemp("images"), list(SHAPES))
    return Family(
        request.param,
        FACTS[request.param],
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
        [Image.open(path).convert("RGB") for path in paths],
    )
