"""The chat generator against a real local server that fails in every usual way: nothing is lost, nothing paid twice."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hacl.data.records import Record
from hacl.hallucinate import make_hallucinator


class Server(BaseHTTPRequestHandler):
    """Each request fails once (429, then 500, in turn); captions that name a fox get nonsense for an answer."""

    seen: dict = {}
    answered: list = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        first = body not in self.seen
        self.seen[body] = self.seen.get(body, 0) + 1
        if first:
            self.send_response(429 if len(self.seen) % 2 else 500)
            self.end_headers()
            return
        caption = re.search(r"Caption: (.*?)\\n", body)[1]
        self.answered.append(caption)
        rows = [{"kind": "object", "text": caption.replace("dog", word)} for word in ("cat", "horse", "dog")]
        text = "I would rather not." if "fox" in caption else json.dumps({"named": [], "captions": rows})
        reply = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    Server.seen, Server.answered = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_failures_are_retried_nonsense_is_counted_and_a_second_run_asks_nothing(address, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    records = [Record(str(n), captions=(f"A {'fox' if n == 3 else 'dog'} on hill number {n}.",)) for n in range(6)]
    options = {"base_url": address, "model": "m", "cache": str(tmp_path / "c.jsonl"), "first_pause_s": 0.01}
    results = []
    for _ in range(2):
        backend = make_chat(options)
        results.append(backend.propose_batch([(record, 0) for record in records], 4))
        assert backend.rejections["reply is not the JSON asked for"] == 1
        assert backend.rejections["same as a caption"] == 5
        backend.client.close()
    assert results[0] == results[1]
    assert [len(made) for made in results[0]] == [2, 2, 2, 0, 2, 2]
    assert len(Server.answered) == 6
    assert "0 failed" in backend.cost_report()


def make_chat(options):
    pause = options["first_pause_s"]
    backend = make_hallucinator("openai", **{name: value for name, value in options.items() if name != "first_pause_s"})
    backend.client.first_pause_s = pause
    return backend
