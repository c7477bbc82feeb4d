"""Promises of asking: every question once, no reply lost in a kill or changed by a batch or rank, folders not mixed."""

import json

import pytest
import torch

from hacl.evaluation.generation import Generator, RowNoise
from hacl.evaluation.inputs import image_paths
from hacl.evaluation.runner.answerers import GeneratingAnswerer
from hacl.evaluation.runner.ask import ask_all
from hacl.evaluation.runner.checks import check_batching, shown_prompt
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.plan import Request, request_key
from hacl.evaluation.runner.ranks import join_ranks
from hacl.evaluation.runner.store import AnswerStore
from tests.distributed.ranks import run_ranks
from tests.tiny import write_tiny_records

QUESTIONS = ("what", "is there a red square in the image", "describe", "", "how many", "what colour is it ?", "a", "no")


class Echo:
    """Replies with the question, counts what it was asked, and can die after some batches."""

    def __init__(self, dies_after=None):
        self.asked, self.dies_after = [], dies_after

    def size(self, request):
        return len(request.prompt)

    def answer(self, requests, images):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked += [request.prompt for request in requests]
        return [{"reply": request.prompt, "tokens": 1, "stopped": True} for request in requests]


def requests_of(count):
    return [Request(f"k{n}", None, f"question {n}", f"file:{n}", 8) for n in range(count)]


def image_requests(paths):
    return [
        Request(request_key(path, question), path, question, f"questions.jsonl:{n}", 6)
        for n, (path, question) in enumerate(zip(paths, QUESTIONS, strict=True))
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from hacl.data.records import read_records

    folder = tmp_path_factory.mktemp("runner")
    return image_paths(read_records(write_tiny_records(folder, len(QUESTIONS))), folder)


@pytest.fixture(scope="module")
def loaded(tiny_llava):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(tiny_llava), AutoProcessor.from_pretrained(tiny_llava)


def test_a_killed_run_goes_on_where_it_was_and_asks_nothing_twice(tmp_path):
    store, first, second = AnswerStore(tmp_path / "run", {"model": "m"}), Echo(dies_after=4), Echo()
    with pytest.raises(KeyboardInterrupt):
        ask_all(requests_of(9), lambda: first, store, batch_size=2)
    with (tmp_path / "run" / "answers.rank0.jsonl").open("a") as stream:
        stream.write('{"key": "k8", "reply": "cut o')
    answers = ask_all(requests_of(9), lambda: second, store, batch_size=2)
    assert sorted(first.asked + second.asked) == [f"question {n}" for n in range(9)]
    assert [answers[f"k{n}"]["reply"] for n in range(9)] == [f"question {n}" for n in range(9)]
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"k{n}" for n in range(9)]
    assert not list((tmp_path / "run").glob("answers.rank*"))


def test_a_finished_run_needs_no_model_and_takes_more_questions(tmp_path):
    store = AnswerStore(tmp_path / "run", {"model": "m"})
    ask_all(requests_of(3), Echo, store, batch_size=2)

    def refuse():
        raise AssertionError("a model was loaded")

    assert len(ask_all(requests_of(3), refuse, store, batch_size=2)) == 3
    more = Echo()
    ask_all(requests_of(5), lambda: more, store, batch_size=2)
    assert more.asked == ["question 3", "question 4"]


def test_replies_of_two_configurations_never_share_a_folder(tmp_path):
    ask_all(requests_of(1), Echo, AnswerStore(tmp_path / "run", {"decoding": {"seed": 0}}), batch_size=1)
    with pytest.raises(ValueError, match=r"decoding.seed: 0 there, 1 here.*choose another --out"):
        ask_all(requests_of(1), Echo, AnswerStore(tmp_path / "run", {"decoding": {"seed": 1}}), batch_size=1)


def test_every_batch_is_on_disk_before_the_next_begins(tmp_path):
    store, seen = AnswerStore(tmp_path / "run", {}), []

    class Watching(Echo):
        def answer(self, requests, images):
            seen.append(len(store.read()))
            return super().answer(requests, images)

    ask_all(requests_of(6), Watching, store, batch_size=2)
    assert seen == [0, 2, 4]


def test_an_unreadable_image_names_question_and_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    request = Request("k", tmp_path / "x.png", "what", "pope.jsonl:4, question_id 7", 8)
    with pytest.raises(ValueError, match=r"pope.jsonl:4, question_id 7: .*x.png"):
        ask_all([request], Echo, AnswerStore(tmp_path / "run", {}), batch_size=1)


def test_a_damaged_line_is_named_and_not_skipped(tmp_path):
    store = AnswerStore(tmp_path / "run", {})
    ask_all(requests_of(2), Echo, store, batch_size=1)
    path = tmp_path / "run" / "answers.jsonl"
    path.write_text("{]\n" + path.read_text())
    with pytest.raises(ValueError, match=r"answers.jsonl:1: not a JSON line"):
        store.read()


def _ask_on_rank(rank, out):
    from pathlib import Path

    echo, store = Echo(), AnswerStore(Path(out), {"model": "m"})
    answers = ask_all(requests_of(11), lambda: echo, store, batch_size=2, ranks=join_ranks())
    return echo.asked, [answers[f"k{n}"]["reply"] for n in range(11)]


def test_ranks_share_the_questions_and_write_what_one_process_writes(tmp_path):
    (first, one), (second, two) = run_ranks(_ask_on_rank, 2, str(tmp_path / "two"))
    asked, alone = _ask_on_rank(0, str(tmp_path / "one"))
    assert one == two == alone and len(first) == 6 and len(second) == 5
    assert sorted(first + second) == sorted(asked)
    assert (tmp_path / "two" / "answers.jsonl").read_bytes() == (tmp_path / "one" / "answers.jsonl").read_bytes()


def test_a_sampled_reply_depends_on_seed_and_question_and_not_on_its_batch(loaded, images):
    requests = image_requests(images)
    generator = Generator(*loaded, decoding=Decoding(temperature=1.0, seed=1))
    answerer = GeneratingAnswerer(generator)

    def replies(order, size):
        found = {}
        for start in range(0, len(order), size):
            batch = [requests[n] for n in order[start : start + size]]
            rows = answerer.answer(batch, [request.image for request in batch])
            found.update({request.key: row["reply"] for request, row in zip(batch, rows, strict=True)})
        return [found[request.key] for request in requests]

    forward = replies(range(8), 8)
    assert forward == replies(range(7, -1, -1), 3)
    generator.decoding = Decoding(temperature=1.0, seed=2)
    assert forward != replies(range(8), 8)
    generator.decoding = Decoding()
    greedy = replies(range(8), 4)
    generator.decoding = Decoding(temperature=1e-6, seed=5)
    assert replies(range(8), 4) == greedy


def test_row_noise_samples_the_softmax():
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1]))
    noise = RowNoise(0, [str(n) for n in range(500)])
    drawn = torch.cat([noise(None, logits.expand(500, 3)).argmax(-1) for _ in range(20)])
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.02)


def test_a_reply_says_how_many_tokens_it_took_and_whether_it_was_cut(loaded, images):
    generator = Generator(*loaded, decoding=Decoding(max_new_tokens=5, min_new_tokens=5))
    for reply in generator.replies(images[:2], ["what", "describe it"]):
        assert len(reply.ids) == 5 and not set(reply.ids[:4]) & set(generator.eos)
        assert reply.stopped == (reply.ids[-1] in generator.eos)


def test_the_batching_check_passes_and_finds_a_wrong_mask(loaded, images, monkeypatch):
    generator, requests = Generator(*loaded, template="chat"), image_requests(images)
    assert check_batching(generator, requests, 4) is None
    right = generator.inputs

    def without_mask(*arguments):
        inputs = right(*arguments)
        return inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}

    monkeypatch.setattr(generator, "inputs", without_mask)
    found = check_batching(generator, requests, 4)
    assert found is not None and found.single != found.batched and found.margin > 0 and found.count >= 1


def test_the_shown_prompt_is_what_the_model_reads(loaded, images):
    text = shown_prompt(Generator(*loaded, template="chat"), image_requests(images)[0])
    assert "<image x 16>" in text and text.replace(" ", "").endswith("whatASSISTANT:")
