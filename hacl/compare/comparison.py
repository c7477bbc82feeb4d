"""One comparison of an original with its tuned model, from checkpoints and records to the files of a report.

Every stage writes into one folder and is taken up where it was left: finished stages are recognised by a digest of what
they were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hacl.compare.analysis import AnalysisSettings, analyse, layer_summary
from hacl.compare.paired_features import load_pairs
from hacl.compare.plain import plain, write_tables
from hacl.data.records import Record, read_records
from hacl.evaluation.runner.source import ADAPTER_CONFIG, ModelSource, find_model
from hacl.models.identity import fingerprint
from hacl.representations import FeatureStore, samples_from_records
from hacl.representations.manifest import MANIFEST, PROGRESS, write_json
from hacl.representations.parts import EMBED, FINAL_NORM, find_parts
from hacl.representations.samples import Sample
from hacl.steering.layers import LayerKey

ANALYSIS, BEHAVIOUR, SUMMARY = "analysis.json", "behaviour.json", "summary"


@dataclass(frozen=True)
class ComparisonSettings:
    """original, tuned: model folders (tuned: also a checkpoint, a run, or a LoRA adapter over the original); base: of a
    checkpoint or adapter that moved; records, image_root; out: the folder. prompt, template: None takes those that the
    tuned model was made with. captions: texts per record; limit: most records. layers: see `Parts.resolve`, () for four
    blocks spread over the decoder and the final norm. select, mode, answer, batch_size, max_new_tokens: see `capture`.
    fit_share: share of images that interventions are fitted on. behaviour_layers: () for the captured blocks.
    """

    original: str
    tuned: str
    records: str
    image_root: str
    out: str
    base: str | None = None
    prompt: str | None = None
    template: str | None = None
    captions: int = 1
    limit: int | None = None
    layers: tuple[int | str, ...] = ()
    select: tuple[str, ...] = ("mean_generated",)
    mode: str = "teacher_forced"
    answer: str = "reference"
    batch_size: int = 16
    max_new_tokens: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    fit_share: float = 0.5
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    behaviour_layers: tuple[int | str, ...] = ()


class Comparison:
    """The stages: `capture`, `analyse`, `recover`. Models are loaded when a stage needs them."""

    def __init__(self, settings: ComparisonSettings, *, progress: bool = True):
        self.settings, self.progress = settings, progress
        self.out = Path(settings.out)

    @cached_property
    def sources(self) -> tuple[ModelSource, ModelSource]:
        first = find_model(self.settings.original)
        if first.kind not in ("folder", "hub"):
            raise ValueError(
                f"--original {self.settings.original} is a {first.kind}; export it first (scripts/export.py), so that "
                "shift vectors can name it"
            )
        return first, find_model(self.settings.tuned, base=self._base_of_tuned(first.fingerprint))

    def _base_of_tuned(self, original: str) -> str | None:
        """An adapter is one over the original, unless its own base is here and is another model."""
        config = Path(self.settings.tuned) / ADAPTER_CONFIG
        if self.settings.base or not config.is_file():
            return self.settings.base
        named = json.loads(read_text(config)).get("base_model_name_or_path") or ""
        other = Path(named).is_dir() and fingerprint(named) != original
        return None if other else self.settings.original

    @property
    def template(self) -> str:
        return self.settings.template or self.sources[1].template or self.sources[0].template or "plain"

    @property
    def prompt(self) -> str:
        given = self.settings.prompt
        return given if given is not None else self.sources[1].prompt or self.sources[0].prompt or ""

    @property
    def one_load(self) -> bool:
        """Whether the tuned model is an adapter over the original."""
        first, second = self.sources
        return second.kind == "adapter" and second.folder.resolve() == first.folder.resolve()

    @cached_property
    def models(self) -> tuple[Any, Any, Any]:
        """(original, tuned, processor); tuned is None where the original is a PEFT wrapper that holds both."""
        first, second = self.sources
        load = {"dtype": self.settings.dtype, "device": self.settings.device}
        original, processor = first.load(**load), first.processor()
        if self.one_load:
            from peft import PeftModel

            return PeftModel.from_pretrained(original, second.path).eval(), None, processor
        self._check_tokenizer(processor, second.processor())
        return original, second.load(**load), processor

    def _check_tokenizer(self, *processors: Any) -> None:
        """Both models read the original's tokens, so the tuned one must mean the same by them."""
        from hacl.representations.encoding import RowEncoder

        if len({RowEncoder(processor).tokenizer_hash() for processor in processors}) > 1:
            raise ValueError(
                f"--tuned {self.settings.tuned} has another tokenizer than --original {self.settings.original}; "
                "the same text would be other tokens, so their states are no pairs"
            )

    @cached_property
    def records(self) -> list[Record]:
        return read_records(self.settings.records, limit=self.settings.limit)

    @cached_property
    def samples(self) -> list[Sample]:
        return samples_from_records(
            self.records, self.settings.image_root, prompt=self.prompt, captions=self.settings.captions
        )

    def layers(self) -> list[int | str]:
        """The layers to capture, resolved."""
        if self.settings.layers:
            return list(self.settings.layers)
        count = len(find_parts(self.models[0]).blocks)
        return [*sorted({count // 4, count // 2, 3 * count // 4, count - 1}), FINAL_NORM]

    def steered_layers(self) -> tuple[LayerKey, ...]:
        """The layers that interventions choose from, in forward order: blocks by number, and "final_norm" if named.

        Raises:
            ValueError: a layer that the model does not have, or none that can be steered.
        """
        named = list(self.settings.behaviour_layers)
        skipped = (EMBED,) if named else (EMBED, FINAL_NORM)
        names = [n for n in find_parts(self.models[0]).resolve(named or self.layers()) if n not in skipped]
        if not names:
            raise ValueError(f"no layer to steer at among {named or self.layers()}; name blocks by --behaviour-layers")
        return tuple(int(name) if name.isdigit() else name for name in names)

    @cached_property
    def parted(self) -> tuple[list[Sample], list[Sample], list[Sample]]:
        """Samples that interventions are fitted on, all others, and those of the others on which nothing is chosen.

        Raises:
            ValueError: too few images.
        """
        from hacl.compare.behaviour import split_samples
        from hacl.compare.recover_behaviour import SELECT_ON, split_images

        seed = self.settings.behaviour.get("seed", 0)
        fit_on, measure_on = split_images(self.samples, self.settings.fit_share, seed)
        return fit_on, measure_on, split_samples(measure_on, SELECT_ON, seed)[1]

    # Stages

    def capture(self) -> tuple[Path, Path]:
        """Feature stores of both models on the same texts; what is there is not computed again."""
        from hacl.representations.capture import capture

        settings = self.settings
        folder = self.out / "features"
        stores = (folder / "original", folder / "tuned")
        if self.one_load:
            stores = (folder / "adapter_off", folder / "adapter_on")
        original, tuned, processor = self.models
        common: dict[str, Any] = {
            "layers": self.layers(), "select": settings.select, "mode": settings.mode, "template": self.template,
            "batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens, "progress": self.progress,
        }  # fmt: skip
        if self.one_load:
            capture(original, processor, self.samples, out=folder, answer=settings.answer, adapter="both", **common)
            return stores
        answer = self._answers() if settings.mode == "teacher_forced" else "reference"
        for model, source, store in zip((original, tuned), self.sources, stores, strict=True):
            capture(model, processor, self.samples, out=store, answer=answer, fingerprint=source.fingerprint, **common)
        return stores

    def _answers(self) -> str | dict[str, str]:
        """The text that both models read: the records', or what one of the two models writes."""
        if self.settings.answer == "reference":
            return "reference"
        from hacl.representations.encoding import RowEncoder
        from hacl.representations.free import generate_answers

        path, settings = self.out / "features" / f"texts_{self.settings.answer}.json", self.settings
        writer = ("original", "tuned").index(settings.answer)
        key = digest_of(self.sources[writer].fingerprint, self.template, settings.max_new_tokens, settings.dtype)
        known = (finished(path, key) or {"texts": {}})["texts"]
        asked = [sample for sample in self.samples if sample.digest() not in known]
        if asked:
            found = generate_answers(
                self.models[writer], RowEncoder(self.models[2], template=self.template), asked,
                batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens, progress=self.progress,
            )  # fmt: skip
            known |= {sample.digest(): found[sample.id] for sample in asked}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"made_from": key, "texts": known})
        return {sample.id: known[sample.digest()] for sample in self.samples}

    def analyse(self, stores: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
        """Concepts, shifts and held-out recovery of every captured layer and selector; {name: analysis}."""
        found = {}
        store = FeatureStore(stores[0])
        for selector in self.settings.select:
            for layer in store.layers:
                name = analysis_name(layer, selector)
                folder = self.out / "layers" / name
                made_from = [read_text(s / name) for s in stores for name in (MANIFEST, PROGRESS)]
                key = digest_of(made_from, asdict(self.settings.analysis))
                known = finished(folder / ANALYSIS, key)
                if known is None:
                    if self.progress:
                        print(f"analysing {name}", flush=True)
                    made = analyse(load_pairs(*stores, layer=layer, selector=selector), self.settings.analysis)
                    known = made.to_json() | {"made_from": key}
                    made.save(folder)
                    write_json(folder / ANALYSIS, known)
                found[name] = known
        write_tables(self.out, SUMMARY, {"layers": layer_summary(found)}, {"layers": layer_summary(found)})
        return found

    def recover(self, **tasks: Any) -> dict[str, Any]:
        """Behaviour recovery on images that the interventions were not fitted on; tasks: options of `tasks_for`."""
        from hacl.compare.recover_behaviour import (
            BehaviourSettings,
            fit_methods,
            recover_behaviour,
            reply_rows,
            save_methods,
            tasks_for,
        )

        options = dict(self.settings.behaviour)
        measured = options.pop("measured", None)
        settings = BehaviourSettings(
            layers=self.steered_layers(), template=self.template, batch_size=self.settings.batch_size, **options,
        )  # fmt: skip
        models = [source.fingerprint for source in self.sources], self.settings.dtype
        data = [sample.digest() for sample in self.samples], self.records, self.prompt, self.settings.fit_share
        key = digest_of(models, data, asdict(settings), measured, tasks)
        known = finished(self.out / BEHAVIOUR, key)
        if known is not None:
            return known
        original, tuned, processor = self.models
        fit_on, measure_on, confirmed_on = self.parted
        fitted = fit_methods(
            original, tuned, processor, fit_on, settings,
            max_new_tokens=self.settings.max_new_tokens, progress=self.progress,
        )  # fmt: skip
        save_methods(fitted, self.out / "steerers", self.sources[0].path, settings)
        asked = tasks_for(measure_on, {r.image_id or r.id: r for r in self.records}, margin_prompt=self.prompt,
                          image_root=self.settings.image_root, **tasks)  # fmt: skip
        report = recover_behaviour(
            original, tuned, processor, fitted, measure_on, sorted({s.group for s in fit_on}), settings,
            tasks=asked, measured=measured, progress=self.progress,
        )  # fmt: skip
        report.write(self.out)
        kept = asked.without({s.group for s in measure_on} - {s.group for s in confirmed_on})
        content = report.to_json() | {"made_from": key, "replies": reply_rows(report, kept, 12)}
        write_json(self.out / BEHAVIOUR, plain(content))
        return content


def analysis_name(layer: str, selector: str) -> str:
    """Folder name of one layer and selector."""
    plain_selector = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in selector)
    return f"layer_{layer}.{plain_selector}"


def digest_of(*parts: Any) -> str:
    """Sixteen hex digits of values that JSON can hold."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """A stage's result, if it is there and was made from the same things."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if content.get("made_from") == key else None


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
