"""Fixtures shared by all tests: one CPU thread per process and tiny stock models built once per session."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory):
    """Folder of a random LLaVA (CLIP tower, 16 image tokens, 2 blocks of width 32) with its processor."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "llava", "llava")


@pytest.fixture(scope="session")
def tiny_fast_vlm(tmp_path_factory):
    """Folder of a random FastVLM (convolutional tower, 4 image tokens, 2 blocks of width 32) with its processor."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "fast_vlm", "fast_vlm")


@pytest.fixture(params=["llava", "fast_vlm"])
def tiny_model(request):
    """Both families in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")
