"""CLIPScore: the published formula, and an open_clip model from a local folder."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hacl.evaluation.scorers import InputError, score
from hacl.evaluation.scorers.clip_score import clip_score, ref_clip_score


class Axes:
    """An embedder whose cosines are known."""

    name = "axes"
    vectors = {"right": [1.0, 0.0], "half": [0.5, 0.75**0.5], "wrong": [-1.0, 0.0], "other": [0.0, 1.0]}

    def text(self, words):
        return [np.array(self.vectors[word.removeprefix("A photo depicts ")]) for word in words]

    def image(self, row):
        return None if row.get("image") == "gone" else np.array([2.0, 0.0])


def caption(image_id, text, **more):
    return {"image_id": image_id, "caption": text, **more}


def test_clip_score_is_two_and_a_half_times_the_positive_cosine():
    assert clip_score(0.3) == 0.75 and clip_score(-0.3) == 0.0
    report = score("clip_score", [caption(1, "right"), caption(2, "half"), caption(3, "wrong")], model=Axes())
    assert [item["clip_score"] for item in report.items] == pytest.approx([2.5, 1.25, 0.0])
    assert report.metrics["clip_score"] == pytest.approx(1.25)
    assert "ref_clip_score" not in report.metrics and "axes" in report.warnings[0]


def test_ref_clip_score_is_the_harmonic_mean_with_the_nearest_reference():
    assert ref_clip_score(0.4, [0.2, 0.5]) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert ref_clip_score(-0.4, [0.5]) == 0.0 and ref_clip_score(0.4, [-0.5]) == 0.0
    rows = [caption(1, "half", references=["other", "right"]), caption(2, "right")]
    report = score("clip_score", rows, model=Axes())
    nearest = 0.75**0.5  # cos(half, other) is larger than cos(half, right)
    assert report.metrics["ref_clip_score"] == pytest.approx(2 * 1.25 * nearest / (1.25 + nearest))
    assert report.counts["with_references"] == 1


def test_references_from_a_file_notice_missing_and_unknown_images(tmp_path):
    truth = tmp_path / "captions.jsonl"
    lines = [{"image_id": 1, "captions": ["right"]}, {"image_id": "2", "captions": ["half"]}]
    truth.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    rows = [caption(2, "half"), caption(1, "right"), caption(1, "half")]
    report = score("clip_score", rows, truth, model=Axes())
    assert report.counts == {"predictions": 3, "captions": 3, "with_references": 3, "missing": 0}
    with pytest.raises(InputError, match="1 of 2 images"):
        score("clip_score", rows[:1], truth, model=Axes())
    assert score("clip_score", rows[:1], truth, model=Axes(), allow_missing=True).counts["missing"] == 1
    with pytest.raises(InputError, match="not in the references"):
        score("clip_score", [caption(3, "right")], truth, model=Axes())
    with pytest.raises(InputError, match="cannot be found"):
        score("clip_score", [caption(1, "right", image="gone")], model=Axes())


def test_a_model_and_images_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="--model"):
        score("clip_score", [caption(1, "x")])
    with pytest.raises(ValueError, match="--images"):
        score("clip_score", [caption(1, "x")], model=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="weights"):
        score("clip_score", [caption(1, "x")], model=str(tmp_path), images=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not a folder"):
        score("clip_score", [caption(1, "x")], model="ViT-B-32", images=str(tmp_path))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A randomly initialised open_clip model in the library's own folder layout, and a folder with two images."""
    import open_clip
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    folder, images = tmp_path_factory.mktemp("tiny-clip"), tmp_path_factory.mktemp("images")
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config["model_cfg"])
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    Image.new("RGB", (20, 16), (200, 30, 30)).save(images / "red.png")
    Image.new("RGB", (16, 20), (30, 30, 200)).save(images / "blue.png")
    return folder, images


def test_an_open_clip_folder_scores_images(tiny_clip):
    import open_clip
    import torch
    from PIL import Image

    folder, images = tiny_clip
    rows = [
        caption(1, "a red square", image="red.png"),
        caption(2, "a blue square", image="blue.png", references=["blue"]),
    ]
    report = score("clip_score", rows, model=str(folder), images=str(images))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    for row, item in zip(rows, report.items, strict=True):
        with torch.inference_mode():
            image = model.encode_image(preprocess(Image.open(images / row["image"])).unsqueeze(0), normalize=True)
            said = model.encode_text(tokenize([f"A photo depicts {row['caption']}"]), normalize=True)
        assert item["clip_score"] == pytest.approx(2.5 * max(float((image * said).sum()), 0), abs=1e-5)
    assert report.counts["with_references"] == 1
    assert str(folder / "open_clip_model.safetensors") in report.meta["inputs"]


def test_the_same_folder_embeds_nouns(tiny_clip):
    folder, images = tiny_clip
    rows = [{"id": 1, "response": "", "nouns": ["dog", "moon"], "image": "red.png"}]
    options = {"embedder": f"open_clip:{folder}", "images": str(images), "noun_count": 2}
    report = score("creative", rows, **options)
    assert 0 <= report.metrics["association_diversity_noun_noun"] <= 200
    assert report.metrics["association_diversity_image_noun"] is not None
    with pytest.raises(ValueError, match="climbs out"):
        score("creative", [{**rows[0], "image": "../red.png"}], **options)
