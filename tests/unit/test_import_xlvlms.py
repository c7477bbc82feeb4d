"""Promises of the importer of XL-VLMs feature files: both layouts, safely, and joined by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hacl.representations import FeatureStore, paired
from hacl.representations.import_xlvlms import import_xlvlms, layer_name

NORM, LAYER = "language_model.model.norm", "language_model.model.layers.31"
IMAGES = ["val/1.jpg", "val/2.jpg", "val/1.jpg", "val/3.jpg"]
KEPT = [True, False, True, True]


def states(seed=0, positions=1):
    draw = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(1, positions, 6, generator=draw).half() for name in (NORM, LAYER)} for _ in range(4)]


def documented(hidden):
    return {"hidden_states": hidden, "token_of_interest_mask": torch.tensor(KEPT), "image": IMAGES}


def actual(hidden):
    mask = [torch.tensor([kept]) for kept in KEPT]
    texts = [[f"a dog {i}"] for i in range(4)]
    return {"hidden_states": hidden, "token_of_interest_mask": mask, "image": [[i] for i in IMAGES],
            "model_predictions": texts}  # fmt: skip


def saved(path, content):
    torch.save(content, path)
    return path


def test_both_layouts_give_the_same_features(tmp_path):
    hidden = states()
    a = FeatureStore(import_xlvlms(saved(tmp_path / "a.pth", documented(hidden)), tmp_path / "a"))
    b = FeatureStore(import_xlvlms(saved(tmp_path / "b.pth", actual(hidden)), tmp_path / "b"))
    assert a.layers == b.layers == ("final_norm", "31")
    for name, module in (("final_norm", NORM), ("31", LAYER)):
        expected = torch.cat([hidden[i][module][0] for i in (0, 2, 3)]).float().numpy()
        assert np.array_equal(a.read(name), expected) and np.array_equal(b.read(name), expected)
    assert [row.sample for row in a.rows] == [row.sample for row in b.rows] == ["val/1.jpg", "val/1.jpg#1", "val/3.jpg"]
    assert [row.image for row in a.rows] == [row.image for row in b.rows] == ["val/1.jpg", "val/1.jpg", "val/3.jpg"]
    assert [row.image_id for row in a.rows] == ["val/1.jpg", "val/1.jpg", "val/3.jpg"]
    assert [row.text for row in b.rows] == ["a dog 0", "a dog 2", "a dog 3"]
    assert a.manifest["dtype"] == "float16" and a.manifest["missing"] == {"xl-vlms": 1}


def test_files_of_two_models_join_by_image(tmp_path):
    first, second = documented(states(0)), documented(states(1))
    order = [3, 2, 1, 0]
    second["hidden_states"] = [second["hidden_states"][i] for i in order]
    second["image"], second["token_of_interest_mask"] = [IMAGES[i] for i in order], torch.tensor([True] * 4)
    a = FeatureStore(import_xlvlms(saved(tmp_path / "a.pth", first), tmp_path / "a"))
    b = FeatureStore(import_xlvlms(saved(tmp_path / "b.pth", second), tmp_path / "b"))
    pairs = paired(a, b)
    assert [b.rows[j].image for j in pairs.index_b] == [a.rows[i].image for i in pairs.index_a]
    assert (len(pairs), pairs.dropped_a, pairs.dropped_b) == (3, 0, 1)


def test_several_positions_masked_rows_and_absent_lists_are_handled(tmp_path):
    content = documented(states(positions=3))
    store = FeatureStore(import_xlvlms(saved(tmp_path / "a.pth", content), tmp_path / "a", keep_masked=True))
    assert len(store) == 12 and store.rows[5].key == "xl-vlms#2"
    bare = saved(tmp_path / "b.pth", {"hidden_states": states()})
    assert [row.sample for row in FeatureStore(import_xlvlms(bare, tmp_path / "b")).rows] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("module", "name"),
    [("model.layers.23", "23"), ("model.transformer.blocks.5", "5"), ("model.text_model.norm", "final_norm"),
     ("model.transformer.ln_f", "final_norm"), ("lm_head", "lm_head"), ("a.b-c", "a_b_c"),
     ("vision.layers.x", "vision_layers_x")],
)  # fmt: skip
def test_upstream_modules_have_a_layers_name(module, name):
    assert layer_name(module) == name


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    path = saved(tmp_path / "a.pth", {"hidden_states": states(), "image": Hostile()})
    with pytest.raises(ValueError, match=r"a\.pth"):
        import_xlvlms(path, tmp_path / "a")
    assert "must not" not in capsys.readouterr().out and not (tmp_path / "a").exists()


def test_what_is_no_feature_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        import_xlvlms(tmp_path / "none.pth", tmp_path / "a")
    hidden = states()
    lacking = [*hidden[:3], {NORM: hidden[3][NORM]}]
    for content, message in [
        ([1], "no list 'hidden_states'"),
        ({"hidden_states": []}, "no list 'hidden_states'"),
        ({"hidden_states": [torch.zeros(2)]}, "not {module name: tensor}"),
        ({"hidden_states": hidden, "image": ["a"]}, "1 entries of 'image' for 4"),
        ({"hidden_states": hidden, "token_of_interest_mask": torch.ones(3)}, "3 entries of 'token_of_interest_mask'"),
        ({"hidden_states": lacking}, r"hidden_states\[3\] has no 'language_model.model.layers.31'"),
    ]:
        with pytest.raises(ValueError, match=message):
            import_xlvlms(saved(tmp_path / "x.pth", content), tmp_path / "x")
        (tmp_path / "x.pth").unlink()
