"""A chat server on the loopback address that plays good and bad answers and counts what it was asked."""

import json
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, *, finish="stop", usage=True, **choice):
    """A well-formed answer."""
    answer = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish, **choice}]}
    return answer | ({"usage": {"prompt_tokens": 11, "completion_tokens": 7}} if usage else {})


def first_token(**probabilities):
    """The `logprobs` of a choice whose first token has these log-probabilities."""
    top = [{"token": token, "logprob": value} for token, value in probabilities.items()]
    return {"content": [{**top[0], "top_logprobs": top}]}


class ChatServer:
    """`play(body, asked)` says what a request gets; `asked` counts requests with the same body, from 0.

    It returns a dict (sent as JSON), a string (sent as it is), or (status, headers, dict or string). Headers may hold
    "cut": bytes to leave out at the end, "delay": seconds before answering, "drip": seconds between bytes.
    """

    def __init__(self, play):
        self.play = play
        self.bodies, self.headers, self.paths = [], [], []
        self.asked = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                owner.handle(self)

            def log_message(self, *_args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_exception):
        self.http.shutdown()
        self.http.server_close()

    def handle(self, handler):
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        with self.lock:
            asked = self.asked[raw]
            self.asked[raw] += 1
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            played = self.play(body, asked)
            status, extra, content = played if isinstance(played, tuple) else (200, {}, played)
            self.send(handler, status, dict(extra), content if isinstance(content, str) else json.dumps(content))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client's time-out

    def send(self, handler, status, headers, text):
        time.sleep(headers.pop("delay", 0))
        with self.lock:
            self.at_once -= 1  # before a byte is sent: the client may ask again the moment it has the last one
        cut, drip = headers.pop("cut", 0), headers.pop("drip", 0)
        content = text.encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        for piece in [content[i : i + 1] for i in range(len(content))] if drip else [content[: len(content) - cut]]:
            handler.wfile.write(piece)
            time.sleep(drip)


def echo(body, _asked=0):
    """Answers with the last message."""
    return completion("echo " + str(body["messages"][-1]["content"]))


FAULTS = ("429", "500", "timeout", "malformed", "cut", "none")


class Faults:
    """The first attempt at each request fails in one of the ways; later ones reach `answer`, which is counted.

    answer(body, subject): what such a request gets; subject(body): (number, what it is about); delay: seconds until a
    reply that times out.
    """

    def __init__(self, answer, subject, delay):
        self.answer, self.subject, self.delay = answer, subject, delay
        self.reached, self.played = Counter(), Counter()

    def __call__(self, body, asked):
        number, about = self.subject(body)
        fault = FAULTS[number % len(FAULTS)] if asked == 0 else "none"
        self.played[fault] += 1
        if fault == "429":
            return 429, {"Retry-After": "0.2"}, {"error": {"message": "slow down"}}
        if fault == "500":
            return 500, {}, "<html>internal error</html>"
        if fault == "timeout":
            return 200, {"delay": self.delay}, completion("too late")
        if fault == "malformed":
            return 200, {}, '{"choices": [{"message": {"content": "'
        if fault == "cut":
            return 200, {"cut": 9}, completion("cut off")
        self.reached[json.dumps(body, sort_keys=True)] += 1
        return self.answer(body, about)


def forwarding(url):
    """An answer for `Faults`: what a real server at `url` says."""

    def answer(body, _about):
        request = urllib.request.Request(
            url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.loads(response.read())

    return answer
