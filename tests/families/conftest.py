"""Each family in turn, built and loaded once a session."""

import pytest

from tests.families import MULTIMODAL, build
from tests.families.facts import FACTS, SHAPES
from tests.families.loaded import Family
from tests.tiny_families import draw_images


def pytest_generate_tests(metafunc):
    """`family` is every family, or those of the module's `FAMILIES_HERE`; a test may name its own."""
    named = any("family" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "family" in metafunc.fixturenames and not named:
        wanted = getattr(metafunc.module, "FAMILIES_HERE", MULTIMODAL)
        metafunc.parametrize("family", wanted, indirect=True, scope="session")


@pytest.fixture(scope="session")
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
