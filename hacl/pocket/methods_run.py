"""Training against steering in the pocket world: one base, every method of lowering hallucination, one test set.

The unsteered model is the control arm (ordinary fine-tuning). Beside it stand the base, the other trained arms, other
prompts and visual contrastive decoding; steering methods are swept on validation scenes and confirmed on test scenes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hacl.compare.behaviour_measures import text_likelihood
from hacl.compare.behaviour_tasks import Tasks
from hacl.compare.forced import Side
from hacl.data.records import Record, read_records
from hacl.evaluation.inputs import image_paths
from hacl.evaluation.pope import SPLITS, build_questions
from hacl.evaluation.runner.decoding import Decoding, VisualContrast
from hacl.pocket.evaluate import PROMPT, QUESTION
from hacl.pocket.experiment import Unit, keep_result
from hacl.pocket.language import PROMPTS
from hacl.pocket.methods_fit import fit_methods
from hacl.pocket.world import KINDS, object_vocabulary
from hacl.representations.samples import Sample
from hacl.study.points import Point, measure_point
from hacl.study.sweep import Baseline, Run, sweep

UNTUNED, CONTROL, DPO = "base", "control", "dpo"
TRAINED = ("hacl_paper", "hacl_ours", "margin")  # beside the control and DPO
SHIFTED = ("hacl_ours", "margin")  # whose shift from the control is a steering vector
ALPHAS = (-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0)
LAYERS = ((1,), (2,), (0, 1, 2, 3))
POLICIES = ("generated", "all")
OBJECTIVE = "CHAIR_i"
CONTRASTS = tuple(VisualContrast(alpha=alpha, noise=noise) for alpha in (0.5, 1.0) for noise in (500, 999))
WORDS = 56  # tokens of a caption at most


@dataclass(frozen=True)
class MethodsSizes:
    """Scenes: fit of the vectors, validation and test captions, and test scenes that are also asked about."""

    fit: int = 400
    validation: int = 200
    test: int = 500
    questions: int = 100


@dataclass(frozen=True)
class MethodsUnit(Unit):
    """All methods on one base. trained: {arm: checkpoint}; dpo: configuration of DPO, None to leave it out."""

    trained: Mapping[str, Path] | None = None
    methods: MethodsSizes = MethodsSizes()
    dpo: Path | None = None

    def key(self) -> dict[str, Any]:
        key = {
            "base": self.base, "seed": self.seed, "base_folder": self.base_folder.name,
            "trained": {name: weights_of(path) for name, path in (self.trained or {}).items()},
            "methods": asdict(self.methods), "dpo": self.dpo and self.dpo.read_text(encoding="utf-8"),
            "tuning": self.world.tuning, "test": self.world.test, "splits": list(self.world.splits),
            "world_seed": self.world.seed,
            "grid": [ALPHAS, LAYERS, POLICIES, [asdict(each) for each in CONTRASTS], PROMPTS],
        }  # fmt: skip
        return json.loads(json.dumps(key))  # as it is read back

    @property
    def validation_split(self) -> str:
        return self.world.splits[0]

    @property
    def test_split(self) -> str:
        return self.world.splits[1]


def weights_of(checkpoint: Path) -> str:
    """Names a checkpoint by its manifest, which holds the hashes of its files."""
    digest = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()[:12]
    return f"{checkpoint.parent.name}/{checkpoint.name} {digest}"


def run_methods_unit(unit: MethodsUnit) -> dict[str, Any]:
    """Measure every method on one base; writes and returns the result, or the one that is there."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    done = unit.finished()
    if done is not None:
        return done
    torch.set_num_threads(1)
    from hacl.training.export import load_finetuned

    unit.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    processor = AutoProcessor.from_pretrained(unit.base_folder)
    models = {name: load_finetuned(path)[0].eval() for name, path in unit.trained.items()}
    models[UNTUNED] = AutoModelForImageTextToText.from_pretrained(unit.base_folder, use_safetensors=True).eval()
    root = unit.world.root
    tuning = read_records(root / "train.jsonl")
    control = Side(models.pop(CONTROL), processor, template="chat")
    if unit.dpo is not None:
        models[DPO] = _tune_dpo(unit, control, tuning)
    fitted_on = [record for record in tuning if record.captions][: unit.methods.fit]
    steerers = fit_methods(
        control.model, processor, fitted_on, root, unit.folder / "vectors",
        tuned={name: models[name] for name in SHIFTED}, seed=unit.seed,
    )  # fmt: skip
    ready = time.perf_counter()
    counts = {record.image_id: record.objects or {} for record in tuning}
    validation = tasks_of(_scenes(unit, unit.validation_split, unit.methods.validation), root)
    test_records = _scenes(unit, unit.test_split, unit.methods.test)
    test = tasks_of(test_records, root, asked=unit.methods.questions, counts_from=counts, seed=unit.seed)
    result = sweep(
        control, steerers, validation, test, out=unit.folder / "sweep", alphas=ALPHAS, layers=LAYERS,
        policies=POLICIES, objective=OBJECTIVE, baselines=baselines(control, models, processor),
        fitted_on={record.image_id for record in fitted_on}, batch_size=100, seed=unit.seed, progress=False,
        manifest={"unit": unit.key()},
    )  # fmt: skip
    kept = {
        "key": unit.key(), "base": unit.base, "seed": unit.seed,
        "methods": {name: _shown(name, result) for name in result.test},
        "seconds": round(ready - start, 1), "seconds_measuring": round(time.perf_counter() - ready, 1),
    }  # fmt: skip
    keep_result(unit, kept)
    return kept


def _scenes(unit: MethodsUnit, split: str, count: int) -> list[Record]:
    """The first scenes of a split. Raises ValueError where a world drawn for less holds fewer."""
    path = unit.world.root / f"{split}.jsonl"
    records = read_records(path)
    if len(records) < count:
        raise ValueError(
            f"{path}: {len(records)} scenes, {count} are asked for; remove {unit.world.root}, or use another --out"
        )
    return records[:count]


def _tune_dpo(unit: MethodsUnit, control: Side, tuning: Sequence[Record]):
    """The control, tuned further by DPO: as usual it starts from, and is held to, an ordinarily tuned model."""
    from transformers import AutoModelForImageTextToText

    from hacl.training.dpo import tune_dpo
    from hacl.training.dpo_settings import load_dpo_settings

    start = unit.folder / CONTROL
    control.model.save_pretrained(start)
    control.processor.save_pretrained(start)
    settings = load_dpo_settings(unit.dpo, [f"seed={unit.seed}"])
    captioned = [record for record in tuning if record.captions]
    with (unit.folder / "dpo.log").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        made = tune_dpo(start, captioned, unit.world.root, settings, unit.folder / DPO, verify=False)
    return AutoModelForImageTextToText.from_pretrained(made, use_safetensors=True).eval()


def _shown(name: str, result) -> dict[str, Any]:
    """What the comparison over bases needs of one method."""
    rows = [row for row in result.curve if row.name == name and row.setting == result.chosen.get(name)]
    return {
        "role": result.roles[name],
        "setting": None if result.chosen.get(name) is None else str(result.chosen[name]),
        "validation": rows[0].point.value(OBJECTIVE) if rows else None,
        "failures": rows[0].failures if rows else [],
        "metrics": result.test[name].values(),
        "items": {measure: dict(table) for measure, table in result.test[name].tables.items()},
        "captions": result.test[name].captions[:24],
    }


def tasks_of(
    records: Sequence[Record],
    root: Path,
    *,
    asked: int = 0,
    counts_from: Mapping[str, Mapping[str, int]] | None = None,
    seed: int = 0,
    prompt: str = PROMPT,
) -> Tasks:
    """Captions of all records, and POPE questions about the first `asked` of them.

    counts_from: objects of training scenes by image id, whose frequencies decide popular and adversarial questions.
    """
    paths = dict(zip((record.image_id for record in records), image_paths(records, root), strict=True))
    captions = [Sample(record.id, paths[record.image_id], prompt, None, record.image_id) for record in records]
    truth = {record.image_id: record.objects or {} for record in records}
    own = {record.image_id: truth[record.image_id] for record in records[:asked]}
    prior = {**(counts_from or {}), "every kind": {kind.name: 0 for kind in KINDS}}
    questions = {
        split: build_questions(own, split, seed=seed, counts_from=prior, template=QUESTION)
        for split in (SPLITS if asked else ())
    }
    return Tasks(captions, truth, object_vocabulary(), questions=questions, images=paths, max_new_tokens=WORDS)


def baselines(control: Side, models: Mapping[str, Any], processor) -> dict[str, Baseline]:
    """Trained arms, other prompts and contrastive decodings, each measured like a steered model.

    The likelihood of what a trained arm writes is that under the control, as for every other method.
    """
    found: dict[str, Baseline] = {
        name: _trained(name, Side(model, processor, template="chat"), control) for name, model in models.items()
    }
    for number, prompt in enumerate(PROMPTS[1:], start=1):
        found[f"prompt-{number}"] = _prompted(f"prompt-{number}", prompt)
    for each in CONTRASTS:
        name = f"vcd-{each.alpha:g}-{each.noise}"
        found[name] = _contrasted(name, each)
    return found


def _trained(name: str, side: Side, control: Side) -> Baseline:
    def measured(run: Run, tasks: Tasks) -> Point:
        point = measure_point(side, tasks, name=name, batch_size=run.batch_size)
        likelihood = text_likelihood(control, tasks.captions, point.captions, batch_size=run.batch_size, progress="")
        return replace(point, tables={**point.tables, "nll": likelihood["nats_per_token"]})

    return measured


def _prompted(name: str, prompt: str) -> Baseline:
    def measured(run: Run, tasks: Tasks) -> Point:
        asked = replace(tasks, captions=[replace(sample, prompt=prompt) for sample in tasks.captions])
        return run.measure(name, asked, read_as=tasks.captions)

    return measured


def _contrasted(name: str, settings: VisualContrast) -> Baseline:
    def measured(run: Run, tasks: Tasks) -> Point:
        return measure_point(run.side, tasks, name=name, batch_size=run.batch_size, decoding=Decoding(vcd=settings))

    return measured


def choose(methods: Mapping[str, Mapping[str, Any]], prefix: str) -> str:
    """Of the baselines `PREFIX-...`, the one with the lowest validation objective among those that keep the guards, or
    among all where none does."""
    names = [name for name in methods if name.startswith(f"{prefix}-")]
    allowed = [name for name in names if not methods[name]["failures"]]
    return min(allowed or names, key=lambda name: (methods[name]["validation"], name))
