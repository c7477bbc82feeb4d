"""Promises of the chat client: every request answered once, failures told apart, the key nowhere but in its header."""

import json
import logging
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from hacl.chat_api import ChatClient, ChatError, ChatRequest, Decoding, image_part
from hacl.chat_api_cost import text_tokens
from hacl.chat_api_http import Pace, retry_after
from tests.chat_server import ChatServer, completion, echo, first_token

KEY = "sk-secret-0123456789abcdef"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "replies.jsonl"


def client(server, cache, **options):
    options = {"first_pause_s": 0.001, "timeout_s": 30, "max_retries": 3, **options}
    return ChatClient(server if isinstance(server, str) else server.url, "judge", cache=cache, **options)


def requests(*texts, **decoding):
    messages = [[{"role": "user", "content": text}] for text in texts]
    return [ChatRequest(f"r{i}", one, Decoding(**decoding)) for i, one in enumerate(messages)]


def ask(server, cache, *texts, decoding=None, **options):
    with client(server, cache, **options) as asking:
        return list(asking.complete_many(requests(*texts, **(decoding or {})))), asking.spending


def failing_once(failure):
    return lambda body, asked: failure if asked == 0 else echo(body)


def test_replies_come_in_order_whatever_the_server_finishes_first(cache):
    def play(body, _asked):
        return 200, {"delay": 0.5 if body["messages"][0]["content"] == "0" else 0}, echo(body)

    with ChatServer(play) as server:
        replies, _ = ask(server, cache, *"0123456789")
    assert [reply.text for reply in replies] == [f"echo {i}" for i in range(10)]
    assert [reply.id for reply in replies] == [f"r{i}" for i in range(10)]
    assert 1 < server.most_at_once <= 4
    assert set(server.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    "kind, failure",
    [
        ("http_429", (429, {"Retry-After": "0"}, "slow down")),
        ("http_500", (500, {}, "<html>oops</html>")),
        ("http_503", (503, {}, "")),
        ("timeout", (200, {"delay": 1.5}, completion("late"))),
        ("timeout", (200, {"drip": 0.05}, completion("too slow to be whole in time"))),
        ("malformed", "{'not': json"),
        ("malformed", "[]"),
        ("malformed", (200, {"cut": 20}, completion("cut off"))),
        ("malformed", {"choices": []}),
        ("malformed", {"choices": [{"message": None}]}),
        ("malformed", {"error": {"message": "overloaded"}}),
        ("malformed", completion("   ")),
        ("malformed", completion(None)),
        ("malformed", completion(17)),
    ],
)
def test_a_failure_that_may_pass_is_tried_again_and_never_cached(cache, kind, failure):
    with ChatServer(failing_once(failure)) as server:
        replies, spending = ask(server, cache, "a", timeout_s=1 if kind == "timeout" else 30)
    assert replies[0].text == "echo a" and replies[0].error is None
    assert spending.failures == {kind: 1} and spending.attempts == 2 and spending.replies == 1
    assert [json.loads(line)["text"] for line in cache.read_text().splitlines()] == ["echo a"]


def test_a_connection_refused_is_tried_again_and_then_named(cache):
    with ChatServer(echo) as server:
        url = server.url
    with pytest.raises(ChatError, match="2 requests in a row failed.*4 attempts failed"):
        ask(url, cache, "a", "b", "c", give_up_after=2)
    assert cache.read_text() == ""


def test_retry_after_holds_back_every_request_not_only_the_refused_one(cache):
    started = []

    def play(body, asked):
        started.append(time.monotonic())
        return (429, {"Retry-After": "0.5"}, "") if len(started) == 1 else echo(body)

    with ChatServer(play) as server:
        ask(server, cache, *"abcdef", concurrency=1)
    assert started[1] - started[0] >= 0.5


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert retry_after("1.5") == 1.5
    assert 25 < retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after(formatdate(time.time() - 30, usegmt=True)) == 0
    assert retry_after(None) is retry_after("soon") is retry_after("nan") is None


def test_a_wait_too_long_to_sit_out_ends_the_run(cache):
    with ChatServer(lambda *_: (429, {"Retry-After": "86400"}, "daily limit")) as server:
        with pytest.raises(ChatError, match="86,400 s: run again then"):
            ask(server, cache, "a", "b")
    assert len(server.bodies) <= 2


@pytest.mark.parametrize(
    "status, said, expected",
    [
        (401, "bad key", "OPENAI_API_KEY', which is not set"),
        (404, "no such model", "usually in /v1"),
        (429, '{"error": {"code": "insufficient_quota"}}', "insufficient_quota"),
        (302, "", "redirects are not followed"),
    ],
)
def test_what_would_hit_every_request_ends_the_run_at_once(cache, monkeypatch, status, said, expected):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(lambda *_: (status, {"Location": "http://127.0.0.1:9/"}, said)) as server:
        with pytest.raises(ChatError, match=expected):
            ask(server, cache, *"abcdefgh", concurrency=1)
    assert len(server.bodies) == 1 and cache.read_text() == ""


@pytest.mark.parametrize(
    "answer, expected",
    [
        ((400, {}, "context too long"), "context too long"),
        (completion(None, finish="content_filter"), "content filter"),
        (completion("", finish="length"), "no text within 512 tokens"),
    ],
)
def test_what_hits_one_request_is_reported_for_it_and_the_others_go_on(cache, answer, expected):
    with ChatServer(lambda body, _: answer if body["messages"][0]["content"] == "b" else echo(body)) as server:
        replies, spending = ask(server, cache, "a", "b", "c")
    assert [reply.text for reply in replies] == ["echo a", "", "echo c"]
    assert expected in replies[1].error and spending.failed == 1 and len(server.bodies) == 3
    assert len(cache.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "answer", [(400, {}, {"error": {"code": "content_filter"}}), completion(None), (413, {}, "too long")]
)
def test_refusals_of_content_never_end_a_run_however_many_come_in_a_row(cache, answer):
    if isinstance(answer, dict):
        answer["choices"][0]["message"]["refusal"] = "I will not judge this."
    with ChatServer(lambda body, _: echo(body) if body["messages"][0]["content"] == "z" else answer) as server:
        replies, spending = ask(server, cache, *"abcdefghz")
    assert [reply.error is None for reply in replies] == [False] * 8 + [True] and spending.failed == 8


def test_equal_requests_are_asked_once_also_when_in_flight_together(cache):
    with ChatServer(lambda body, _: (200, {"delay": 0.2}, echo(body))) as server, client(server, cache) as asking:
        found = []
        threads = [
            threading.Thread(target=lambda: found.extend(asking.complete_many(requests("a", "b", "a", "a"))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.bodies) == 2
    assert sorted(reply.text for reply in found) == ["echo a"] * 9 + ["echo b"] * 3


def test_a_second_run_asks_nothing_and_other_decoding_asks_again(cache):
    with ChatServer(echo) as server:
        ask(server, cache, "a", "b")
        replies, spending = ask(server, cache, "b", "a")
        assert len(server.bodies) == 2 and all(reply.cached for reply in replies)
        assert [reply.text for reply in replies] == ["echo b", "echo a"] and spending.cached == 2
        ask(server, cache, "a", decoding={"seed": 1})
        assert len(server.bodies) == 3


@pytest.mark.parametrize("tail", [b'{"key": "abc", "te', b"\0\0\0\0", b'{"key": "k", "text": "whole"}'])
def test_what_a_kill_left_half_written_is_cut_off_and_asked_again(cache, tail):
    with ChatServer(echo) as server:
        ask(server, cache, "a")
        with open(cache, "ab") as file:
            file.write(tail)
        with client(server, cache) as asking:
            assert asking.cache.repaired and len(asking.cache) == 1
        ask(server, cache, "a", "b")
    assert len(server.bodies) == 2
    assert [json.loads(line)["text"] for line in cache.read_text().splitlines()] == ["echo a", "echo b"]


def test_a_damaged_line_in_the_middle_and_a_second_process_are_refused(cache):
    cache.write_text('{"key": "a", "text": "x"}\nrubbish\n{"key": "b", "text": "y"}\n')
    with pytest.raises(ValueError, match=r"replies.jsonl:2: not a reply of this cache"):
        client("http://localhost:1/v1", cache)
    cache.unlink()
    with client("http://localhost:1/v1", cache), pytest.raises(ValueError, match="another process"):
        client("http://localhost:1/v1", cache)


def test_leaving_early_keeps_what_was_under_way_and_asks_nothing_more(cache):
    with ChatServer(lambda body, _: (200, {"delay": 0.05}, echo(body))) as server:
        with client(server, cache, concurrency=2) as asking:
            iterator = asking.complete_many(requests(*map(str, range(50))))
            next(iterator)
            iterator.close()
        kept = len(cache.read_text().splitlines())
        assert kept == len(server.bodies) < 50
        replies, _ = ask(server, cache, *map(str, range(50)))
    assert len(replies) == 50 and max(server.asked.values()) == 1


def test_a_reply_that_cannot_be_kept_ends_the_run_with_the_reason(cache, monkeypatch):
    with ChatServer(echo) as server, client(server, cache) as asking:
        monkeypatch.setattr(asking.cache, "_write", lambda line: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            list(asking.complete_many(requests(*"abcdef")))


def test_attempts_start_no_faster_than_the_rate_allows_and_not_before_a_hold_ends(monkeypatch):
    monkeypatch.setattr("hacl.chat_api_http.time", SimpleNamespace(monotonic=lambda: 100.0))
    waits = []
    stop = SimpleNamespace(wait=waits.append)
    pace = Pace(600)
    for _ in range(3):
        assert pace.wait(stop)
    pace.hold(30)
    pace.wait(stop)
    pace.wait(stop)
    assert waits == pytest.approx([0, 0.1, 0.2, 30, 30.1])


def test_the_key_is_sent_and_shown_nowhere(cache, monkeypatch, caplog, capsys):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with ChatServer(lambda *_: completion(f"you sent {KEY}")) as server:
        replies, _ = ask(server, cache, "a", api_key_env="MY_KEY")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    with ChatServer(lambda *_: (401, {}, f"Incorrect API key provided: {KEY}")) as server:
        with pytest.raises(ChatError) as refused, client(server, cache, api_key_env="MY_KEY") as asking:
            list(asking.complete_many(requests("b")))
    shown = [repr(replies), cache.read_text(), str(refused.value), repr(refused.value), caplog.text, repr(vars(asking))]
    shown += [json.dumps(asking.spending.to_json()), *capsys.readouterr()]
    assert not [text for text in shown if KEY in text] and "[key]" in replies[0].text


def test_a_key_that_cannot_be_a_header_is_refused_without_being_shown(cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as refused:
        client("http://localhost:1/v1", cache)
    assert "sk-secret" not in str(refused.value)


def test_a_server_on_this_machine_is_asked_directly_whatever_proxy_is_set(cache, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ChatServer(echo) as server:
        assert ask(server, cache, "a")[0][0].text == "echo a"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://user:pass@x/v1", "https://x/v1?key=abc"])
def test_addresses_without_a_scheme_or_with_secrets_are_refused(cache, url):
    with pytest.raises(ValueError, match="base URL"):
        client(url, cache)


def test_images_leave_the_machine_only_when_that_was_allowed(cache, tmp_path):
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    asked = [ChatRequest("i", [{"role": "user", "content": [image_part(tmp_path / "dot.png")]}])]
    with ChatServer(lambda *_: completion("seen")) as server:
        with client(server, cache) as asking, pytest.raises(ValueError, match="allow_images=True"):
            asking.complete_many(asked)
        assert not server.bodies
        with client(server, cache, allow_images=True) as asking:
            assert next(asking.complete_many(asked)).text == "seen"
    assert "base64" not in cache.read_text()


def test_the_estimate_counts_what_is_new_and_the_report_what_was_spent(cache):
    with ChatServer(echo) as server:
        ask(server, cache, "a")
        with client(server, cache, price_in=1.0, price_out=10.0) as asking:
            estimate = asking.estimate(requests("a", "b" * 400, "b" * 400))
            assert (estimate.requests, estimate.new, estimate.cached, estimate.repeated) == (3, 1, 1, 1)
            assert estimate.prompt_tokens == 104 and estimate.completion_tokens == 512
            assert estimate.cost == pytest.approx((104 + 5120) / 1e6)
            assert len(server.bodies) == 1
            list(asking.complete_many(requests("a", "b" * 400)))
        assert asking.spending.cost == pytest.approx((11 + 70) / 1e6)
    assert text_tokens("hello world!") == 3 and text_tokens("犬犬犬") == 2


def test_log_probabilities_of_the_first_token_come_back_also_from_the_cache(cache):
    logprobs = first_token(unsafe=-0.1, safe=-2.4)
    with ChatServer(lambda *_: completion("unsafe", logprobs=logprobs)) as server:
        for _ in range(2):
            replies, _ = ask(server, cache, "a", decoding={"top_logprobs": 5})
            assert replies[0].logprobs == (("unsafe", -0.1), ("safe", -2.4))
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 5


def test_extra_fields_go_along_and_none_takes_a_field_out():
    extra = {"max_tokens": None, "max_completion_tokens": 9}
    assert Decoding(extra=extra).body() == {"temperature": 0.0, "max_completion_tokens": 9}


def test_text_that_is_no_valid_unicode_is_asked_and_kept(cache):
    with ChatServer(lambda body, _: completion("犬 \ud800 ok")) as server:
        for _ in range(2):
            replies, _ = ask(server, cache, "犬 \udcff")
    assert replies[0].cached and len(server.bodies) == 1
