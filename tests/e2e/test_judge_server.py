"""The judge command against a server that fails in every way, stopped in the middle and started again.

With a real server behind the same faults (docs/judge.md), which is asked for what the faults let through:

    HACL_JUDGE_URL=http://127.0.0.1:8000/v1 HACL_JUDGE_MODEL=NAME pytest -s tests/e2e/test_judge_server.py -k real
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

from tests.chat_server import FAULTS, ChatServer, Faults, completion, forwarding

ROOT = Path(__file__).resolve().parents[2]
REAL = {name: os.environ.get(f"HACL_JUDGE_{name}") for name in ("URL", "MODEL")}

pytestmark = pytest.mark.slow


def subject(body):
    number = int(re.search(r"Question (\d+)\?", body["messages"][0]["content"])[1])
    return number, number


def fake(body, number):
    """A judge that sometimes has to be asked again, after a little while."""
    again = len(body["messages"]) > 1
    return (
        200,
        {"delay": 0.05},
        completion("Hard to say." if number % 4 == 3 and not again else f"Rating: {number % 7}"),
    )


def predictions(folder, count):
    rows = [
        {
            "index": i,
            "question": f"Question {i}?",
            "gt_answer": "One.",
            "image_content": ["cat"],
            "model_answer": "Two.",
        }
        for i in range(count)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def judge(folder, server, *arguments, model="small"):
    command = [sys.executable, "scripts/judge.py", "mmhal", "--predictions", str(folder / "answers.jsonl")]
    command += ["--out", str(folder / "reviews.jsonl"), "--base-url", server.url, "--model", model, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(folder):
    file = folder / "reviews.jsonl.replies.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def stopped_and_started_again(folder, server, sign, after, *arguments, model="small"):
    """Run, stop with `sign` once `after` replies are kept, run to the end. Returns what was kept at the stop, and the
    process that ended with its output."""
    first = judge(folder, server, *arguments, model=model)
    while kept(folder) < after and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(sign)  # SIGINT would be ignored below a background job of a shell
    _, errors = first.communicate()
    between = kept(folder)
    assert not (folder / "reviews.jsonl").exists()
    assert first.returncode == (-sign if sign == signal.SIGKILL else 130), errors
    second = judge(folder, server, *arguments, model=model)
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    return between, output


def reviews(folder):
    return [json.loads(line) for line in (folder / "reviews.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL], ids=["interrupt", "kill"])
def test_nothing_is_lost_and_nothing_is_asked_twice_over_faults_and_a_restart(tmp_path, sign):
    rows = predictions(tmp_path, 24)
    faults = Faults(fake, subject, delay=6)
    options = ("--concurrency", "4", "--timeout", "4")
    with ChatServer(faults) as server:
        between, output = stopped_and_started_again(tmp_path, server, sign, 8, *options)
    assert 8 <= between < 24
    assert all(faults.played[fault] >= 3 for fault in FAULTS)
    assert [(row["index"], row["rating"]) for row in reviews(tmp_path)] == [(i, i % 7) for i in range(len(rows))]
    assert len(faults.reached) == kept(tmp_path) == 24 + 6
    in_flight = sum(faults.reached.values()) - len(faults.reached)
    assert in_flight <= (4 if sign == signal.SIGKILL else 0), "only a kill may lose what is on its way"
    assert "24 of 24 verdicts read (parse rate 1.000; 18 at the first asking)" in output


@pytest.mark.skipif(None in REAL.values(), reason="set HACL_JUDGE_URL and HACL_JUDGE_MODEL to a server that runs")
def test_a_real_server_behind_the_same_faults(tmp_path):
    rows = predictions(tmp_path, 8)
    faults = Faults(forwarding(REAL["URL"]), subject, delay=121)
    options = ("--concurrency", "2", "--timeout", "120", "--max-tokens", "12")
    with ChatServer(faults) as server:
        started = time.monotonic()
        between, output = stopped_and_started_again(tmp_path, server, signal.SIGTERM, 3, *options, model=REAL["MODEL"])
        took = time.monotonic() - started
    assert [row["index"] for row in reviews(tmp_path)] == [row["index"] for row in rows]
    assert set(faults.reached.values()) == {1} and len(faults.reached) == kept(tmp_path)
    report = json.loads((tmp_path / "reviews.judge.json").read_text())
    print(f"\n{output}requests of the proxy: {sum(faults.played.values())}, of them {dict(faults.played)}")
    print(
        f"reached the server: {sum(faults.reached.values())}, distinct: {len(faults.reached)}, kept: {kept(tmp_path)}"
    )
    print(f"kept at the interrupt: {between}; asked again for a reading: {report['reasked']}; {took:.0f} s")
