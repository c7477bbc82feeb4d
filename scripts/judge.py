"""Let a language model review answers, through any OpenAI-compatible endpoint.

judges:
  mmhal      rates answers of MMHal-Bench 0 to 6      index, question, gt_answer, image_content, model_answer
  mm_safety  harm, and deferral to an expert          id, scenario, question, response
  pairwise   which of two replies, in both orders     id, question, response, reference [criteria]
  rubric     a question of your own                   id and the {fields} that the rubric names

examples:
  what would be sent, and what it would cost; nothing is sent
    python scripts/judge.py mmhal --predictions answers.jsonl --references questions.json --out reviews.jsonl \\
        --base-url https://api.openai.com/v1 --model gpt-4o --price-in 2.5 --price-out 10 --dry-run
  review, then score (no torch, no network)
    python scripts/judge.py mmhal ... --out reviews.jsonl
    python scripts/score.py mmhal --predictions reviews.jsonl --judge-parser strict --json mmhal.json
  a guard model of one's own
    python scripts/judge.py mm_safety --predictions answers.jsonl --out verdicts.jsonl --guard \\
        --base-url http://localhost:8000/v1 --model meta-llama/Llama-Guard-3-8B
  a question of one's own about each answer
    python scripts/judge.py rubric --rubric fluent.txt --scale yes-no --predictions answers.jsonl --out fluent.jsonl ...

--references FILE adds the benchmark's questions by id, --baseline FILE the replies that pairwise compares with.
Every reply is kept in OUT.replies.jsonl (or --cache) at once: after an interrupt, run the same command again. Beside
OUT stands OUT's name with .judge.json: judge, prompt hash, decoding, parse rate, tokens, cost.

The text of the answers goes to --base-url; images only with --image-root and --allow-images. The key is read from the
environment variable that --api-key-env names and is written nowhere. Exit status: 0 done, 1 replies are missing or the
server refused, 2 the input does not fit, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", choices=("mmhal", "mm_safety", "pairwise", "rubric"))
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="JSONL or a JSON array")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="reviews, JSONL")
    parser.add_argument("--references", type=Path, metavar="FILE", help="the benchmark's questions, joined by id")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N predictions")

    server = parser.add_argument_group("server")
    server.add_argument("--base-url", required=True, help="what /chat/completions follows, usually ends in /v1")
    server.add_argument("--model", required=True, help="name of the model as the server knows it")
    server.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="default: %(default)s")
    server.add_argument("--cache", type=Path, metavar="FILE", help="replies (default: beside --out)")
    server.add_argument("--concurrency", type=positive, default=4, metavar="N", help="default: %(default)s")
    server.add_argument("--requests-per-minute", type=float, metavar="N", help="default: no limit")
    server.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of an attempt (default: %(default)s)")
    server.add_argument("--retries", type=int, default=6, metavar="N", help="of a request (default: %(default)s)")

    asking = parser.add_argument_group("asking")
    asking.add_argument("--max-tokens", type=positive, metavar="N", help="room for a reply (default: the judge's)")
    asking.add_argument("--temperature", type=float, default=0.0, help="default: %(default)s")
    asking.add_argument("--seed", type=int, help="for servers that take one")
    asking.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON", help="more fields; null removes one"
    )
    asking.add_argument(
        "--reask", type=int, default=1, metavar="N", help="askings after an unreadable reply (default 1)"
    )
    asking.add_argument("--image-root", type=Path, metavar="DIR", help="show the judge each prediction's image")
    asking.add_argument("--allow-images", action="store_true", help="yes, images may go to --base-url")

    cost = parser.add_argument_group("cost")
    cost.add_argument("--dry-run", action="store_true", help="print a full request and the estimate, send nothing")
    cost.add_argument("--price-in", type=float, metavar="USD", help="per million tokens sent")
    cost.add_argument("--price-out", type=float, metavar="USD", help="per million tokens received")
    cost.add_argument("--max-cost", type=float, metavar="USD", help="do not start if the estimate is higher")

    own = parser.add_argument_group("of one judge")
    own.add_argument("--guard", action="store_true", help="mm_safety: the model has a moderation prompt of its own")
    own.add_argument("--no-logprobs", action="store_true", help="mm_safety: for servers that refuse the field")
    own.add_argument("--baseline", type=Path, metavar="FILE", help="pairwise: replies to compare with, joined by id")
    own.add_argument("--rubric", type=Path, metavar="FILE", help="rubric: text with {fields}")
    own.add_argument("--scale", choices=("yes-no", "0-10"), help="rubric: default 0-10")
    options = parser.parse_args(arguments)
    owners = {"mm_safety": ("guard", "no_logprobs"), "pairwise": ("baseline",), "rubric": ("rubric", "scale")}
    for judge, names in owners.items():
        for name in names:
            if judge != options.judge and getattr(options, name):
                parser.error(f"--{name.replace('_', '-')} belongs to {judge}, not to {options.judge}")
    if options.judge == "rubric" and options.rubric is None:
        parser.error("rubric needs --rubric FILE")
    if options.max_cost is not None and None in (options.price_in, options.price_out):
        parser.error("--max-cost needs --price-in and --price-out")
    if not isinstance(options.extra_body, dict):
        parser.error("--extra-body must be a JSON object")
    if options.out in (options.predictions, options.cache):
        parser.error("--out must be another file than --predictions and --cache")
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)

    from hacl.chat_api import ChatError

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers interrupt this way
    try:
        return run(options)
    except ChatError as error:
        print(f"judge: {error}\njudge: replies so far are kept; run the same command again to go on", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"judge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njudge: interrupted; replies so far are kept, run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def run(options: argparse.Namespace) -> int:
    from hacl.chat_api import ChatClient, Decoding
    from hacl.evaluation.judges import judge_class, plan, run_judge
    from hacl.evaluation.judges.run import read_items, report_path

    own = {}
    if options.judge == "mm_safety":
        own = {"guard": options.guard, "logprobs": not options.no_logprobs}
    if options.judge == "rubric":
        own = {"rubric": options.rubric.read_text(encoding="utf-8"), "scale": options.scale or "0-10"}
    judge = judge_class(options.judge)(options.image_root, **own)
    items = read_items(
        judge, options.predictions, {"": options.references, "reference": options.baseline}, limit=options.limit
    )
    decoding = Decoding(
        max_tokens=options.max_tokens or judge.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        top_logprobs=judge.top_logprobs(),
        extra=options.extra_body,
    )
    with ChatClient(
        options.base_url,
        options.model,
        cache=options.cache or options.out.with_name(options.out.name + ".replies.jsonl"),
        api_key_env=options.api_key_env,
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        timeout_s=options.timeout,
        max_retries=options.retries,
        price_in=options.price_in,
        price_out=options.price_out,
        allow_images=options.allow_images,
    ) as client:
        requests = [request for _, _, request in plan(judge, items, decoding)]
        estimate = client.estimate(requests)
        if options.dry_run:
            print(json.dumps({"url": client.endpoint.url, "body": client.body(requests[0])}, indent=2))
            print(f"{estimate}\nprompt sha256 {judge.prompt_sha256()}; nothing was sent")
            return 0
        if client.endpoint.sends_key_in_clear:
            print(f"judge: the key in {options.api_key_env} goes to {options.base_url} unencrypted", file=sys.stderr)
        if client.cache.repaired:
            print(f"judge: {client.cache.path}: cut off a half-written last line", file=sys.stderr)
        print(estimate)
        if options.max_cost is not None and estimate.cost > options.max_cost:
            raise ValueError(f"the estimate exceeds --max-cost {options.max_cost:g}; nothing was sent")
        inputs = [path for path in (options.predictions, options.references, options.baseline, options.rubric) if path]
        report = run_judge(
            judge, items, client, options.out, decoding=decoding, reask=options.reask, inputs=inputs, progress=bar
        )
        print(f"{report}\n{client.spending}\nwritten: {options.out}, {report_path(options.out)}")
    return 0 if report.complete else 1


def bar(replies: Iterable, total: int, title: str) -> Iterable:
    """Replies behind a progress bar with the time left."""
    from tqdm import tqdm

    return tqdm(replies, total=total, desc=title, unit="reply", disable=None)


if __name__ == "__main__":
    sys.exit(main())
