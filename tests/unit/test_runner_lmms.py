"""Promises of the lmms-eval adapter, against a stand-in for lmms-eval's own classes (it is not installed here)."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image


class StandIn(ABC):
    """What lmms_eval.api.model.lmms offers a subclass."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *arguments: None)

    @property
    def rank(self):
        return self._rank

    @abstractmethod
    def loglikelihood(self, requests): ...

    @abstractmethod
    def generate_until(self, requests): ...

    @abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@pytest.fixture(scope="module")
def model_class():
    patch = pytest.MonkeyPatch()
    api, registry = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.models.registry_v2")
    api.lmms, registry.ModelManifest = StandIn, ModelManifest
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        patch.setitem(sys.modules, name, ModuleType(name))
    patch.setitem(sys.modules, api.__name__, api)
    patch.setitem(sys.modules, registry.__name__, registry)
    from hacl.evaluation import lmms

    found = lmms.manifest()
    module, name = found.simple_class_path.rsplit(".", 1)
    assert found.model_id == "hacl" and module == lmms.__name__
    yield getattr(lmms, name)
    lmms._model_class.cache_clear()
    patch.undo()


@pytest.fixture(scope="module")
def model(model_class, tiny_llava):
    made = model_class(pretrained=str(tiny_llava), batch_size="2", device="cpu", max_batch_size=None)
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    docs = [{"image": Image.new("RGB", (40, 40), colour)} for colour in colours]
    made.task_dict = {"pope": {"test": docs}}
    return made


def request(question, doc_id, settings, visual=lambda doc: [doc["image"]]):
    return SimpleNamespace(args=(question, settings, visual, doc_id, "pope", "test"))


def test_it_is_a_model_of_lmms_eval_with_replies_in_the_order_of_the_requests(model, model_class):
    assert issubclass(model_class, StandIn) and model_class.is_simple
    short, long = {"max_new_tokens": 3}, {"max_new_tokens": 6, "until": ["nothing"]}
    asked = [("what colour is the object", 0, long), ("what", 1, short), ("describe it", 2, long), ("what", 0, short)]
    together = model.generate_until([request(*each) for each in asked])
    alone = [model.generate_until([request(*each)])[0] for each in asked]
    assert together == alone and len(together[1].split()) <= 3


def test_stop_strings_cut_the_reply(model):
    settings = {"max_new_tokens": 6}
    (whole,) = model.generate_until([request("describe it", 0, settings)])
    word = whole.split()[1]
    (cut,) = model.generate_until([request("describe it", 0, settings | {"until": word})])
    assert cut == whole.split(word)[0]


def test_the_value_of_a_choice_is_a_loss_so_that_the_smallest_is_the_likeliest(model):
    from hacl.evaluation.likelihood import choice_scores

    docs, choices = model.task_dict["pope"]["test"], ["yes", "no"]
    scores = choice_scores(
        model._model, model.processor, [docs[0]["image"]], ["is it red"], choices, template="chat", progress=False
    )[0]
    asked = [SimpleNamespace(args=("is it red", c, lambda doc: [doc["image"]], 0, "pope", "test")) for c in choices]
    losses = [loss for loss, _ in model.loglikelihood(asked)]
    assert (losses[0] < losses[1]) == (scores[0] > scores[1]) and min(losses) > 0


def test_what_it_cannot_read_is_refused(model, model_class, tiny_llava):
    two = lambda doc: [doc["image"], doc["image"]]  # noqa: E731
    with pytest.raises(ValueError, match="pope, document 1: 2 images"):
        model.generate_until([request("what", 1, {"max_new_tokens": 2}, two)])
    with pytest.raises(ValueError, match="str in place of an image"):
        model.generate_until([request("what", 1, {"max_new_tokens": 2}, lambda doc: ["video.mp4"])])
    with pytest.raises(ValueError, match="no 'prompt'"):
        model_class(pretrained=str(tiny_llava), prompt="x", device="cpu")
