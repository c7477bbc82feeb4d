"""One evaluation: every benchmark asked, kept, scored and summed up in a folder.

``OUT/BENCHMARK/`` holds answers.jsonl (replies, append-only while running), run.json (how they were made), predictions,
items and reports; ``OUT/summary.{json,csv,md}`` the figures of all benchmarks.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hacl.evaluation.runner import questions, results
from hacl.evaluation.runner.ask import Answerer, ask_all
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.images import chair_plan
from hacl.evaluation.runner.pairs import SCORINGS, CaptionMargin, SugarCrepe
from hacl.evaluation.runner.places import Place
from hacl.evaluation.runner.plan import Plan, Request, distinct, each_alone, only_some
from hacl.evaluation.runner.prompts import DEFAULT, Prompt, find_prompt
from hacl.evaluation.runner.ranks import Ranks
from hacl.evaluation.runner.source import ModelSource
from hacl.evaluation.runner.store import AnswerStore, write_json

GENERATED: dict[str, Callable[[Place, int | None], Plan]] = {
    "pope": questions.pope_plan,
    "chair": chair_plan,
    "amber": questions.amber_plan,
    "mme": questions.mme_plan,
    "mmhal": questions.mmhal_plan,
    "mm_safety": questions.mm_safety_plan,
}
PAIRED = {"sugarcrepe": SugarCrepe, "caption_margin": CaptionMargin}
BENCHMARKS = (*GENERATED, *PAIRED)


@dataclass(frozen=True)
class Settings:
    """What an evaluation is made of.

    places: where each benchmark's data is; prompts: wording by benchmark where it is not the default; decoding: its
    max_new_tokens counts only with ``same_limit``, otherwise each kind of question has its own limit; options: of the
    scorers, by benchmark; cut: "keep" or "drop" the unfinished last sentence of a caption; limit: first N questions
    of each file; command: as typed, for run.json; steering: folder of a steering artefact under which replies are
    generated; alpha: its strength, None for the artefact's own; only: which questions (`plan.only_some`), None for all.
    """

    model: ModelSource
    places: Mapping[str, Place]
    out: Path
    template: str = "auto"
    prompts: Mapping[str, str] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=questions.LONG))
    same_limit: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cut: str = "keep"
    batch_size: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "sdpa"
    limit: int | None = None
    command: str = ""
    steering: Path | None = None
    alpha: float | None = None
    only: str | None = None

    def __post_init__(self) -> None:
        scored = sorted(PAIRED.keys() & self.places.keys())
        if self.only is not None and scored:
            raise ValueError(f"--only chooses questions with ids; leave out {', '.join(scored)}")
        if self.steering is not None and scored:
            raise ValueError(f"--steering acts on generated replies; leave them out: {', '.join(scored)} (likelihoods)")
        if self.steering is None and self.alpha is not None:
            raise ValueError("--alpha is the strength of --steering; give the artefact's folder too")
        if self.decoding.vcd is not None and scored:
            raise ValueError(
                f"--vcd-alpha acts on generated replies; leave them out: {', '.join(scored)} (likelihoods)"
            )
        if self.decoding.vcd is not None and self.steering is not None:
            raise ValueError("--vcd-alpha runs the model twice per token, which --steering does not follow; give one")


class Evaluation:
    """The model (loaded when it is first needed) and the benchmarks that are put to it.

    A context: a steering session of the settings opens with the model and ends with the context.
    """

    def __init__(self, settings: Settings, ranks: Ranks | None = None, *, progress: bool = True):
        self.settings = settings
        self.ranks = ranks or Ranks()
        self.progress = progress
        self.processor = settings.model.processor()
        self.template = self._template()
        self._model = None
        self._session = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    @property
    def model(self):
        """The model on its device."""
        if self._model is None:
            settings = self.settings
            self._model = settings.model.load(
                dtype=settings.dtype, device=settings.device, attention=settings.attention
            )
            if settings.steering is not None:
                from hacl.steering import load_steerer, steering

                steerer = load_steerer(settings.steering, model=self._model)
                self._session = self._open.enter_context(steering(self._model, steerer, alpha=settings.alpha))
        return self._model

    @cached_property
    def by_sample(self) -> bool:
        """Whether replies are steered by vectors that are looked up by the id of a question."""
        if self.settings.steering is None:
            return False
        from hacl.steering.vectors import goes_by_sample, read_steering_manifest

        return goes_by_sample(read_steering_manifest(self.settings.steering))

    def prompt(self, benchmark: str) -> Prompt:
        """The wording of a benchmark."""
        return find_prompt(benchmark, self.settings.prompts.get(benchmark), self.settings.model.prompt)

    def plan(self, benchmark: str) -> Plan | SugarCrepe | CaptionMargin:
        """The benchmark's questions, every image file found."""
        plan = {**GENERATED, **PAIRED}[benchmark](self.settings.places[benchmark], self.settings.limit)
        if self.settings.only is not None:
            plan = only_some(plan, self.settings.only)
        blind = [] if self.settings.decoding.vcd is None else [item for item in plan.items() if item.image is None]
        if blind:
            raise ValueError(f"--vcd-alpha contrasts images; {blind[0].where} and {len(blind) - 1} more have none")
        return each_alone(plan) if self.by_sample else plan

    def requests(self, plan) -> list[Request]:
        """Each distinct thing to ask, once."""
        prompt = self.prompt(plan.benchmark)
        if isinstance(plan, Plan):
            return distinct(results.request_of(item, prompt, self.limits) for item in plan.items())
        return distinct(plan.requests(prompt.text))

    @property
    def limits(self) -> dict[str, int]:
        """New tokens allowed for every reply, where one number was given for all."""
        return {"all": self.settings.decoding.max_new_tokens} if self.settings.same_limit else {}

    def answerer(self, benchmark: str) -> Answerer:
        """What replies to this benchmark's requests."""
        from hacl.evaluation.generation import Generator
        from hacl.evaluation.runner.answerers import GeneratingAnswerer, LikelihoodAnswerer

        if benchmark in PAIRED:
            return LikelihoodAnswerer(self.model, self.processor, self.template)
        decoding = self.settings.decoding
        generator = Generator(self.model, self.processor, template=self.template, decoding=decoding)
        return GeneratingAnswerer(generator, self._session if self.by_sample else None)

    def config(self, benchmark: str) -> dict[str, Any]:
        """Everything a reply depends on besides its question and image."""
        decoding = {} if benchmark in PAIRED else self.settings.decoding.to_json()
        if decoding and not self.settings.same_limit:
            decoding["max_new_tokens"] = {"yes/no": questions.SHORT, "description": questions.LONG}
        return {
            "benchmark": benchmark,
            "model": {"kind": self.settings.model.kind, "fingerprint": self.settings.model.fingerprint},
            "template": self.template,
            "prompt": self.prompt(benchmark).to_json(),
            "decoding": decoding,
            "dtype": self.settings.dtype,
            "attention": self.settings.attention,
            **self._steering(),
        }

    def _steering(self) -> dict[str, Any]:
        if self.settings.steering is None:
            return {}
        from hacl.steering.vectors import read_steering_manifest

        found = read_steering_manifest(self.settings.steering)
        alpha = found["alpha"] if self.settings.alpha is None else self.settings.alpha
        named = {name: found[name] for name in ("kind", "layers", "norm", "policy", "sha256")}
        return {"steering": {**named, "alpha": alpha}}

    def run(self, plan: Plan | SugarCrepe | CaptionMargin) -> list[dict[str, Any]]:
        """Ask, keep, score; the summary rows (on the first rank, none elsewhere)."""
        start, benchmark = time.perf_counter(), plan.benchmark
        requests = self.requests(plan)
        folder = self.settings.out / benchmark
        store = AnswerStore(folder, self.config(benchmark))
        before = len(store.read()) if folder.is_dir() else 0
        answers = ask_all(
            requests,
            lambda: self.answerer(benchmark),
            store,
            batch_size=self.settings.batch_size,
            ranks=self.ranks,
            label=benchmark if self.progress else "",
        )
        if not self.ranks.first:
            return []
        run = self._record(store, plan, requests, before, len(answers), time.perf_counter() - start)
        rows = self._score(plan, answers, folder, run)
        write_json(folder / "summary.json", rows)
        return rows

    def _score(self, plan, answers, folder: Path, run) -> list[dict[str, Any]]:
        benchmark, prompt = plan.benchmark, self.prompt(plan.benchmark)
        options = self.settings.options.get(benchmark, {})
        if isinstance(plan, CaptionMargin):
            report = plan.report(prompt.text, answers)
            results.with_intervals(report)
            results.write_lines(folder / "items.jsonl", report.items)
            by_type, overall = results.split_by_type(report)
            results.save_report(folder / "by_type.json", by_type, run)
            results.save_report(folder / "report.json", overall, run)
            return results.summary_rows(benchmark, "", overall)
        partial = self.settings.limit is not None or self.settings.only is not None
        if isinstance(plan, SugarCrepe):
            rows = []
            for scoring in SCORINGS:
                path = folder / f"predictions_{scoring}.jsonl"
                results.write_lines(path, plan.predictions(prompt.text, answers, scoring))
                items = folder / f"items_{scoring}.jsonl"
                report = results.score_rows(benchmark, path, None, items, options, partial)
                report.meta["likelihood"] = scoring
                results.save_report(folder / f"report_{scoring}.json", report, run)
                rows += results.summary_rows(benchmark, scoring, report)
            return rows
        reports = results.finish(
            plan, answers, prompt, self.limits, folder, run, options=options, cut=self.settings.cut,
            allow_missing=partial,
        )  # fmt: skip
        rows = [
            row for part, report in reports.items() if report for row in results.summary_rows(benchmark, part, report)
        ]
        return rows + results.mean_rows(benchmark, reports)

    def _record(self, store, plan, requests, before: int, total: int, seconds: float) -> dict[str, Any]:
        from hacl.evaluation.scorers.reading import sha256_of
        from hacl.training.manifest import versions

        settings = self.settings
        files = plan.files
        content = store.read_run()
        session = {
            "command": settings.command,
            "batch_size": settings.batch_size,
            "ranks": self.ranks.world,
            "device": settings.device,
            "found": before,
            "answered": total - before,
            "seconds": round(seconds, 1),
        }
        record = {
            "model": settings.model.describe(),
            "questions": len(plan.items()) if isinstance(plan, Plan) else len(requests),
            "distinct": len(requests),
            "limit": settings.limit,
            "only": settings.only,
            "cut_sentences": settings.cut,
            "inputs": {str(path): sha256_of(path) for path in files},
            **plan.meta,
            "versions": versions() | {"python": platform.python_version()},
            "sessions": [*content.get("sessions", []), session],
        }
        store.write_run(record)
        return {"config": store.config, "config_hash": store.hash, **record}

    def _template(self) -> str:
        wanted = self.settings.template
        if wanted == "auto":
            wanted = self.settings.model.template
        if wanted is None:
            wanted = "chat" if getattr(self.processor, "chat_template", None) else "plain"
        return wanted


def check_benchmarks(names: list[str]) -> None:
    """Raise ValueError for a name that is no benchmark of the runner, with the near ones."""
    import difflib

    for name in names:
        if name not in DEFAULT:
            near = difflib.get_close_matches(name, BENCHMARKS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"--benchmark {name!r}: {hint}there are {', '.join(BENCHMARKS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"--benchmark {','.join(names)}: one is named twice")
