"""Promises of the lexical generator's options: a tagger, an image-text filter; and of figures on unseen captions."""

import json

import numpy as np
import pytest
from PIL import Image

from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate import make_hallucinator
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.held_out import halves, held_out
from hacl.hallucinate.image_text import ImageTextFilter
from hacl.hallucinate.plausibility import can_relate, subject_class
from hacl.hallucinate.tagger import VERBS, SpacyTagger
from hacl.hallucinate.vocabulary import default_lexicon

SAID = Record(
    "1", ("a.jpg",), "1", ("A dog sitting on a red couch.", "a dog on a sofa"), objects={"dog": 1, "couch": 1}
)


def made(text):
    return HallucinatedCaption(text, "object", (0, len(text)), "test", 0)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A randomly initialised open_clip model in the library's folder layout, with an image beside it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
            "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    model = open_clip.CLIP(**config["model_cfg"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    Image.new("RGB", (40, 30), "red").save(folder / "a.jpg")
    return folder


def test_the_filter_drops_what_scores_as_high_as_the_caption(tiny_clip):
    caption = SAID.captions[0]
    some = [made(caption), made("A cat on a couch."), made("two men ride horses")]
    all_kept, none = ImageTextFilter(str(tiny_clip), image_root=str(tiny_clip), margin=-3.0).keep(SAID, caption, some)
    assert (all_kept, none) == (some, 0)  # a cosine is at most 2 above another
    kept, dropped = ImageTextFilter(str(tiny_clip), image_root=str(tiny_clip)).keep(SAID, caption, some)
    assert some[0] not in kept and len(kept) + dropped == 3  # the caption is no lower than itself
    nothing, all_dropped = ImageTextFilter(str(tiny_clip), image_root=str(tiny_clip), margin=3.0).keep(
        SAID, caption, some
    )
    assert (nothing, all_dropped) == ([], 3)


def test_the_generator_counts_what_the_image_supports(tiny_clip):
    where = {"image_text": str(tiny_clip), "image_root": str(tiny_clip)}
    strict = make_hallucinator("lexical", image_text_margin=3.0, **where)
    assert strict.propose(SAID, 0, 3) == []
    assert strict.rejections["supported by the image"] > 0
    loose = make_hallucinator("lexical", image_text_margin=-3.0, **where)
    assert loose.propose(SAID, 0, 3) == make_hallucinator("lexical").propose(SAID, 0, 3)
    assert strict.settings() != loose.settings()


def test_missing_weights_and_root_are_named(tmp_path):
    with pytest.raises(ValueError, match="image_root"):
        make_hallucinator("lexical", image_text="ViT-B-32")
    with pytest.raises(FileNotFoundError, match="image_text_weights"):
        make_hallucinator("lexical", image_text="ViT-B-32", image_root=str(tmp_path))


class _Tagger(SpacyTagger):
    def __init__(self, verbs):
        self.name, self.verbs = "stub", verbs

    def tags(self, text, words):
        return tuple("VERB" if word.text in self.verbs else "NOUN" for word in words)


def test_a_tagger_decides_what_is_a_verb():
    context = ImageContext(SAID, 0, default_lexicon(), tagger=_Tagger({"sitting"}))
    assert [context.is_tagged(at, VERBS) for at in range(3)] == [False, False, True]
    assert ImageContext(SAID, 0, default_lexicon()).is_tagged(2, VERBS) is None


def test_without_spacy_or_its_pipeline_the_option_says_what_to_install():
    with pytest.raises(ValueError, match="spacy"):
        make_hallucinator("lexical", tagger="spacy", spacy_pipeline="no_such_pipeline")
    with pytest.raises(ValueError, match="rules"):
        make_hallucinator("lexical", tagger="other")


@pytest.mark.parametrize(
    ("old", "new", "noun", "possible"),
    [("in", "on", "grass", False), ("in", "on", "bowl", True), ("on", "behind", "street", False),
     ("in", "next to", "street", True), ("in", "behind", "uniform", False), ("under", "on", "table", True)],
)  # fmt: skip
def test_a_preposition_must_say_something_else_and_possible(old, new, noun, possible):
    assert can_relate(old, new, noun) is possible


@pytest.mark.parametrize(
    ("caption", "stop", "wanted"),
    [("A man sits", 2, "#person"), ("A surfer sits", 2, "#role"), ("A dog sits", 2, "#cat"),
     ("A vase sits", 2, "#vase"),
     ("Golden scissors lie", 2, ""), ("A baby sits", 2, "")],
)  # fmt: skip
def test_subjects_of_one_class_share_what_is_said_of_them(caption, stop, wanted):
    assert subject_class(ImageContext(Record("1", captions=(caption,)), 0, default_lexicon()), stop) == wanted


def test_no_photograph_is_on_both_sides_and_the_curve_has_a_row_for_each_strength():
    colours, places = ("red", "blue", "green", "white"), ("couch", "bed", "chair", "bench")
    rows = [
        Record(str(n), (), str(n // 2), (f"A dog sitting on a {colours[n % 4]} {places[n % 3]}.",), objects={"dog": 1})
        for n in range(60)
    ]
    known, judged = halves(rows, 0)
    assert not {row.image_id for row in known} & {row.image_id for row in judged}
    assert len(known) + len(judged) == 60 and known != halves(rows, 1)[0]

    def backend(survey):
        return make_hallucinator("lexical", survey=survey)

    curve = held_out(rows, backend, strengths=[0.0, 0.75], seeds=[0], k=2)
    assert [row.strength for row in curve] == [0.0, 0.75]
    assert all(row.splits == 2 and row.low <= row.auc <= row.high and 0 <= row.complete <= 1 for row in curve)
    assert np.isfinite([row.paired for row in curve]).all()
    assert curve == held_out(rows, backend, strengths=[0.0, 0.75], seeds=[0], k=2)
