"""The chat generator against a local server that fails in every usual way: nothing is lost, nothing paid twice.

With a real server behind the same faults (docs/negatives_experiment.md), asked for what the faults let through:

    HACL_CHAT_URL=http://127.0.0.1:8000/v1 HACL_CHAT_MODEL=NAME pytest -s tests/e2e/test_chat_backend_server.py -k real
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hacl.data.records import Record, read_records, write_records
from hacl.hallucinate import make_hallucinator
from tests.chat_server import FAULTS, ChatServer, Faults, completion, forwarding

ROOT = Path(__file__).resolve().parents[2]
REAL = {name: os.environ.get(f"HACL_CHAT_{name}") for name in ("URL", "MODEL")}

pytestmark = pytest.mark.slow


def subject(body):
    caption = re.search(r"Caption: (.*)", body["messages"][1]["content"])[1]
    return int(re.search(r"number (\d+)", caption)[1]), caption


def fake(_body, caption):
    """Two good captions and one that is the caption itself; nonsense about foxes."""
    rows = [{"kind": "object", "text": caption.replace("dog", word)} for word in ("cat", "horse", "dog")]
    text = "I would rather not." if "fox" in caption else json.dumps({"named": [], "captions": rows})
    return 200, {"delay": 0.02}, completion(text)


def captioned(count):
    """Records whose captions name their number; every eighth one is about a fox."""
    return [Record(str(n), captions=(f"A {'fox' if n % 8 == 3 else 'dog'} on hill number {n}.",)) for n in range(count)]


def test_failures_are_retried_nonsense_is_counted_and_a_second_run_asks_nothing(tmp_path):
    records, faults = captioned(12), Faults(fake, subject, delay=8)
    results = []
    with ChatServer(faults) as server:
        for _ in range(2):
            backend = make_hallucinator(
                "openai", base_url=server.url, model="m", cache=str(tmp_path / "c.jsonl"), timeout_s=6
            )
            backend.client.first_pause_s = 0.01
            results.append(backend.propose_batch([(record, 0) for record in records], 4))
            assert backend.rejections["reply is not the JSON asked for"] == 2
            assert backend.rejections["same as a caption"] == 10
            backend.client.close()
    assert results[0] == results[1]
    assert [len(made) for made in results[0]] == [0 if n % 8 == 3 else 2 for n in range(12)]
    assert all(faults.played[fault] >= 2 for fault in FAULTS)
    assert len(faults.reached) == 12 and set(faults.reached.values()) == {1}
    assert "0 failed" in backend.cost_report()


def make(folder, server, *arguments, model="m"):
    command = [sys.executable, "data_prep/make_hallucinations.py", "--backend", "openai"]
    command += ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    command += ["--base-url", server.url, "--model", model, "--cache", str(folder / "replies.jsonl"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(folder):
    file = folder / "replies.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def killed_and_started_again(folder, server, after, *arguments, model="m"):
    """Run, kill once `after` replies are kept, run to the end. Returns what was kept at the kill, and the output."""
    first = make(folder, server, *arguments, model=model)
    while kept(folder) < after and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    _, errors = first.communicate()
    assert first.returncode == -signal.SIGKILL, errors
    between = kept(folder)
    second = make(folder, server, *arguments, model=model)
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    return between, output


def test_a_killed_run_over_faults_loses_no_record_and_pays_for_no_reply_twice(tmp_path):
    records = captioned(24)
    write_records(tmp_path / "in.jsonl", records)
    faults = Faults(fake, subject, delay=6)
    options = ("--concurrency", "4", "--timeout-s", "4", "--num-hallucinated", "2", "--candidates", "4")
    with ChatServer(faults) as server:
        between, output = killed_and_started_again(tmp_path, server, 8, *options)
    assert between >= 8
    assert all(faults.played[fault] >= 3 for fault in FAULTS)
    made = read_records(tmp_path / "out.jsonl")
    assert [record.id for record in made] == [record.id for record in records]
    assert [len(record.hallucinated) for record in made] == [0 if n % 8 == 3 else 2 for n in range(24)]
    assert len(faults.reached) == kept(tmp_path) == 24
    in_flight = sum(faults.reached.values()) - len(faults.reached)
    assert in_flight <= 4, "a kill may lose only what is on its way"
    assert "estimate for 24 of 24 captions: 24 requests: " in output and "0 failed" in output
    assert "42 hallucinated captions for" in output


@pytest.mark.skipif(None in REAL.values(), reason="set HACL_CHAT_URL and HACL_CHAT_MODEL to a server that runs")
def test_a_real_server_behind_the_same_faults(tmp_path):
    records = captioned(8)
    write_records(tmp_path / "in.jsonl", records)
    faults = Faults(forwarding(REAL["URL"]), subject, delay=101)
    options = ("--concurrency", "2", "--timeout-s", "100", "--num-hallucinated", "2", "--select", "first")
    started = time.monotonic()
    with ChatServer(faults) as server:
        between, output = killed_and_started_again(tmp_path, server, 3, *options, model=REAL["MODEL"])
    took = time.monotonic() - started
    assert [record.id for record in read_records(tmp_path / "out.jsonl")] == [record.id for record in records]
    assert len(faults.reached) == kept(tmp_path) == 8
    assert sum(faults.reached.values()) - 8 <= 2
    print(f"\n{output}requests of the proxy: {sum(faults.played.values())}, of them {dict(faults.played)}")
    print(
        f"reached the server: {sum(faults.reached.values())}, distinct: {len(faults.reached)}, at the kill: {between}"
    )
    print(f"{took:.0f} s; replies:")
    for line in (tmp_path / "replies.jsonl").read_text().splitlines():
        print(repr(json.loads(line)["text"][:200]))
