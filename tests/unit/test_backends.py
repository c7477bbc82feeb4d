"""Promises of the generators behind the one interface, and of the choice among what they make."""

import json
import random
from collections import Counter

import pytest

from hacl.data.convert import convert
from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate import make_hallucinator
from hacl.hallucinate.backends.chat import ChatBackend, read_captions
from hacl.hallucinate.backends.checks import change_of, check_text, keep_different, type_of
from hacl.hallucinate.backends.lm import in_turns
from hacl.hallucinate.backends.model import first_sentence
from hacl.hallucinate.balance import Balance, Pool, difference, features, fit
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.generators import BACKENDS, backend_class, backend_options
from hacl.hallucinate.leak import Pairs, tfidf_leak
from hacl.hallucinate.select import choose, fit_balance
from hacl.hallucinate.survey import SAMPLE_RECORDS, Survey
from hacl.hallucinate.vocabulary import default_lexicon
from tests.photographs import coco_mini  # noqa: F401 (a fixture)

SCENE = Record(
    "7",
    ("a.jpg",),
    "7",
    ("A dog sitting on a red couch near a window.", "a dog on a sofa"),
    objects={"dog": 1, "couch": 1},
)


def context(record=SCENE, index=0):
    return ImageContext(record, index, default_lexicon())


# The interface


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_declares_its_name_and_options(name):
    made = backend_class(name)
    assert made.name == name
    assert isinstance(made.is_local_cpu, bool)
    assert all(option.help for option in backend_options(name))


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="fillers"):
        make_hallucinator("lm", filers=3)
    with pytest.raises(ValueError, match="it has none"):
        make_hallucinator("naive", model="x")


@pytest.mark.parametrize(("name", "said"), [("lm", "folder"), ("openai", "base_url"), ("model", "folder")])
def test_a_backend_that_lacks_what_it_needs_says_so(name, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        make_hallucinator(name)


@pytest.mark.parametrize("name", ["lexical", "naive"])
def test_a_result_depends_on_its_item_alone(name):
    other = Record("8", captions=("Two cats on a table.",))
    backend = make_hallucinator(name, survey=surveyed(SCENE, other))
    together = backend.propose_batch([(other, 0), (SCENE, 0), (SCENE, 1)], 3)
    assert together[1:] == backend.propose_batch([(SCENE, 0), (SCENE, 1)], 3)
    assert make_hallucinator(name, survey=surveyed(SCENE, other)).propose_batch([(SCENE, 1)], 3) == together[2:]


def surveyed(*records):
    survey = Survey()
    for record in records:
        survey.add(record)
    return survey


def test_a_naive_swap_changes_one_word_for_one_of_its_type():
    for made in make_hallucinator("naive").propose_batch([(SCENE, 0)], 8)[0]:
        change = change_of(made.text, SCENE.captions[0])
        assert len(change.added) == len(change.removed) == 1
        assert made.text[slice(*made.span)] == made.text[change.added[0].start : change.added[0].end]


# Text that somebody else wrote


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("A DOG ON A SOFA", "same as a caption"),
        ("A dog", "too long or too short"),
        ("A dog sitting on a couch near a window.", "only leaves out"),
        ("A dog sitting on a red sofa near a window.", "paraphrase"),
        ("Trains leave every city before long nights and rainy weeks.", "changes too much"),
    ],
)
def test_free_text_is_refused_with_a_reason(text, reason):
    assert check_text(context(), text, "x") == reason


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("A cat sitting on a red couch near a window.", "object"),
        ("A dog sitting on a blue couch near a window.", "attribute"),
        ("Three dogs sitting on a red couch near a window.", "number"),
        ("A dog sleeping on a red couch near a window.", "action"),
        ("A dog sitting under a red couch near a window.", "relation"),
        ("A dog sitting on a red couch near a window with a lamp.", "insertion"),
    ],
)
def test_the_type_of_free_text_is_told_from_what_changed(text, kind):
    made = check_text(context(), text, "x")
    assert isinstance(made, HallucinatedCaption), made
    assert made.type == kind == type_of(context(), change_of(text, SCENE.captions[0]))
    assert text[slice(*made.span)]


def test_texts_that_differ_in_punctuation_alone_count_once():
    made = [HallucinatedCaption(text) for text in ("a cat", "A cat.", "a cow")]
    assert [caption.text for caption in keep_different(made, 5)] == ["a cat", "a cow"]


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ('Sure! {"named": [], "captions": [{"kind": "Object", "text": "a cat"}]} Done.', [("object", "a cat")]),
        ('{"captions": [{"kind": "object"}, "x", {"text": "a cow"}]}', [("", "a cow")]),
        ("no json here", None),
        ('{"captions": "none"}', None),
        ("{broken", None),
    ],
)
def test_a_chat_reply_is_read_whatever_stands_around_it(reply, read):
    assert read_captions(reply) == read


def test_a_chat_request_states_what_is_known_and_nothing_of_the_image_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    backend = ChatBackend(base_url="http://127.0.0.1:9/v1", model="m", cache=str(tmp_path / "c.jsonl"))
    requests = backend.requests((SCENE, 0), 10)
    assert len(requests) == 2
    text = json.dumps([list(request.messages) for request in requests])
    assert "a dog on a sofa" in text and "couch" in text and "a.jpg" not in text
    assert "secret" not in text + json.dumps(backend.settings())
    assert backend.estimate([(SCENE, 0)], 10).new == 2


# Survey and balance


def test_a_survey_is_the_same_however_it_is_shared_out():
    records = [Record(str(n), (), str(n), (f"caption {n % 7} here",), objects={"dog": 1}) for n in range(50)]
    whole, one, two = surveyed(*records), surveyed(*records[::2]), surveyed(*records[1::2])
    two.merge(one)
    assert two.to_json() == whole.to_json() == Survey.from_json(json.loads(json.dumps(whole.to_json()))).to_json()


def test_the_sample_of_a_survey_is_bounded(monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.survey.SAMPLE_RECORDS", 5)
    records = [Record(str(n), captions=("x y",)) for n in range(40)]
    assert SAMPLE_RECORDS > 5
    assert len(surveyed(*records).sampled()) == 5
    assert surveyed(*records).sampled() == surveyed(*records[::-1]).sampled()


def test_differences_leave_out_what_is_shared():
    change = difference("a cat on a mat", "a dog on a mat", "object")
    assert change["cat"] == 1 and change["dog"] == -1 and "mat" not in change
    assert features("a dog")["<words>"] == 2


def test_balance_makes_words_as_common_as_they_are_taken_away():
    """Candidates that write "zebra" are twice as many as those that remove it; the weights must even that out."""
    pools = []
    for n in range(300):
        draw = random.Random(n)
        old, new = (
            ("cat", ["zebra", "zebra", "dog"]) if n % 2 else (draw.choice(["dog", "zebra"]), ["cat", "zebra", "dog"])
        )
        caption = f"a {old} here"
        made = [HallucinatedCaption(f"a {word} here", "object") for word in sorted(set(new) - {old})]
        pools.append(Pool.of(made, caption, str(n)))

    def surplus(costs):
        picks = [pool.candidates[choose(pool, costs(pool), 1)[0]].text for pool in pools]
        return sum("zebra" in text for text in picks) - sum(
            "zebra" in str(p.differences[0]) and p.differences[0]["zebra"] < 0 for p in pools
        )

    balance = fit(pools, choose, k=1, steps=40)
    before = abs(surplus(lambda pool: [0.0] * len(pool.candidates)))
    after = abs(surplus(lambda pool: [balance.cost(d) for d in pool.differences]))
    assert after < before / 2
    assert Balance.from_json(json.loads(json.dumps(balance.to_json()))).cost(pools[0].differences[0]) == pytest.approx(
        balance.cost(pools[0].differences[0]), abs=1e-3
    )


def test_the_choice_takes_three_types_where_there_are_three():
    kinds = ["object"] * 6 + ["number", "action"]
    made = [HallucinatedCaption(f"a {n}", kind) for n, kind in enumerate(kinds)]
    pool = Pool.of(made, "a", "seed")
    for costs in ([0.0] * 8, [0.0] * 6 + [50.0, 50.0]):
        chosen = [kinds[at] for at in choose(pool, costs, 4)]
        assert len(chosen) == 4 and len(set(chosen)) == 3
    assert len(choose(Pool.of(made[:3], "a", "seed"), [0.0] * 3, 4)) == 3


def test_a_probe_finds_a_planted_word_and_nothing_in_texts_of_one_kind():
    rng = random.Random(0)
    texts, others = (
        [" ".join(rng.choice("dog cat red car man sky".split()) for _ in range(8)) for _ in range(200)] for _ in "ab"
    )
    images = [str(n // 2) for n in range(200)]
    marked = Pairs(texts, [f"{text} surely" for text in texts], ["object"] * 200, images)
    assert tfidf_leak(marked).auc > 0.99
    assert 0.4 < tfidf_leak(Pairs(texts, others, ["object"] * 200, images)).auc < 0.6


def test_balanced_captions_of_real_photographs_leak_less_than_the_first_ones(coco_mini):  # noqa: F811
    records = convert(coco_mini / "annotations.jsonl")[:30]
    survey = surveyed(*records)
    items = [(record, index) for record in records for index in range(len(record.captions))]
    balance = fit_balance(make_hallucinator("lexical", survey=survey), survey, k=4)
    assert balance.after < 0.8 * balance.before
    made = make_hallucinator("lexical", survey=survey, balance=balance).propose_batch(items[:40], 4)
    assert all(len({caption.text for caption in some}) == len(some) <= 4 for some in made)


def test_a_generator_that_makes_nothing_leaves_nothing_to_balance_and_says_why():
    class Mute:
        name, rejections = "mute", Counter({"no reply": 2})

        def propose_batch(self, items, k):
            return [[] for _ in items]

    with pytest.raises(ValueError, match="mute made no candidate for 2 captions .refused: no reply 2.*--select first"):
        fit_balance(Mute(), surveyed(SCENE), k=2)


# A language model


class ByLength:
    """Scores a text by its length: every character costs a quarter of a nat."""

    identity = "length"

    def __init__(self, folder, **_):
        pass

    def log_likelihoods(self, texts):
        return [-len(text) / 4 for text in texts]


def test_a_language_model_changes_one_slot_keeps_what_is_near_the_caption_and_lets_types_take_turns(monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.backends.scoring.TextScorer", ByLength)
    record = Record("9", captions=("A black dog sitting on a red couch near a small window with two cats.",))
    backend = make_hallucinator("lm", model="x", drop=0.5, fillers=20)
    (made,) = backend.propose_batch([(record, 0)], 6)
    assert len(made) == 6 and len({item.type for item in made[:3]}) == 3
    for item in made:
        change = change_of(item.text, record.captions[0])
        assert len(change.added) == len(change.removed) == 1
        assert len(item.text) - len(record.captions[0]) <= 2, "0.5 nats are two characters"
    assert backend.rejections["not fluent"] > 0
    assert make_hallucinator("lm", model="x", drop=0.5, fillers=20).propose_batch([(record, 0)], 6) == [made]


def test_types_take_turns_the_likeliest_first():
    made = [HallucinatedCaption(text, kind) for text, kind in
            (("a", "object"), ("b", "object"), ("c", "number"), ("d", "number"), ("e", "action"))]  # fmt: skip
    losses = {"a": 2.0, "b": 1.0, "c": 0.5, "d": 0.7, "e": 9.0}
    assert [item.text for item in in_turns(made, losses)] == ["c", "b", "e", "d", "a"]


# A multimodal model


@pytest.fixture(scope="module")
def pocket_folder(tmp_path_factory):
    from hacl.models.pocket import pocket_model, pocket_processor

    folder = tmp_path_factory.mktemp("pocket")
    pocket_model(0).save_pretrained(folder)
    pocket_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("view", ["absent", "blurred"])
def test_a_multimodal_model_goes_on_from_the_first_words_and_repeats_itself(
    pocket_folder, tmp_path, monkeypatch, view, template
):
    # An untrained model says nothing that the checks would let pass.
    where = "hacl.hallucinate.backends.model"
    monkeypatch.setattr(f"{where}.first_sentence", lambda text, ended: text)
    monkeypatch.setattr(f"{where}.check_text", lambda _context, text, *_, **__: HallucinatedCaption(text))
    from PIL import Image

    from hacl.pocket.language import all_words

    Image.new("RGB", (128, 128)).save(tmp_path / "a.png")
    records = [Record(str(n), ("a.png",), captions=(f"there is a red cup , {n} balls and a boat .",)) for n in range(2)]
    options = {"model": str(pocket_folder), "image_root": str(tmp_path), "view": view, "template": template}
    options |= {"keep": 0.5, "prompt": "describe the scene .", "device": "cpu"}
    made = make_hallucinator("model", **options).propose_batch([(record, 0) for record in records], 3)
    assert made[1:] == make_hallucinator("model", **options).propose_batch([(records[1], 0)], 3)
    texts = [caption.text for some in made for caption in some]
    assert len(set(texts)) == 6 and all(text.startswith("there is a red ") for text in texts)
    assert {word for text in texts for word in text.replace(".", " .").split()} <= {*all_words(), "0", "1"}
    assert make_hallucinator("model", **{**options, "keep": 0.3}).settings()["template"] == template


def test_a_plain_caption_begins_as_in_training_with_one_opening_token(pocket_folder):
    backend = make_hallucinator("model", model=str(pocket_folder), template="plain", device="cpu")
    tokenizer = backend.processor.tokenizer
    ids = backend.processor(text=[backend._asked("there is", with_image=False)])["input_ids"][0]
    assert list(ids).count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("text", "ended", "sentence"),
    [
        ("a cat on a mat. It", False, "a cat on a mat."),
        ("a cat on a mat . it", False, "a cat on a mat ."),
        ("a cat on a mat", True, "a cat on a mat"),
        ("a cat on a mat\nand", False, "a cat on a mat"),
        ("a cat on a", False, None),
    ],
)
def test_a_sample_that_was_cut_off_is_no_sentence(text, ended, sentence):
    assert first_sentence(text, ended) == sentence
