"""`steer.py curve`: turn the dial of a FlexAC method and measure it, beside ablations and controls."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hacl.compare.behaviour_tasks import Tasks
from hacl.compare.forced import Side
from hacl.data.records import read_records
from hacl.evaluation.pope import QUESTION, build_questions
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.source import ModelSource, find_model
from hacl.evaluation.runner.store import AnswerStore
from hacl.evaluation.scorers.creative_embedders import open_embedder
from hacl.models.identity import versions
from hacl.representations.samples import samples_from_records
from hacl.steering import load_steerer
from hacl.steering.association import AssociationFeatures, features_from_extraction
from hacl.steering.commands.extract import layer_keys
from hacl.steering.flexac_presets import preset
from hacl.steering.targets import SteeringData
from hacl.steering.vectors import check_model, read_steering_manifest
from hacl.study.ablations import Source, make_ablations
from hacl.study.control_curve import CurveSettings, control_curve, value_at, write_curve
from hacl.study.curve_measures import HashedNgrams
from hacl.study.curve_options import ABLATIONS, FULL, PAIRED, PROMPT
from hacl.study.curve_replies import Arm, CurveRunner
from hacl.study.inputs import fitted_images, images_of_states, seen_images
from hacl.study.store import tasks_digest

POPE_SPLITS = ("random", "adversarial")
Vocabularies = Mapping[str, Callable[[], Mapping[str, str]]]
WritePage = Callable[[Path, Path, Path | None], Path]  # (JSON file, page, association.json)


def run(
    options: Namespace, open_model: Callable[[Namespace], tuple[Any, Any, str]], vocabularies: Vocabularies,
    write_page: WritePage,
) -> int:  # fmt: skip
    """Measure, write JSON, CSV and the page, print what was found."""
    source = find_model(options.model, base=options.base)
    settings = settings_of(options)
    tasks = {name: tasks_of(options, source, name, vocabularies) for name in ("validation", "records")}
    arms = arms_of(options, source, tasks)
    if options.dry_run:
        print("\n".join(plan_lines(arms, tasks, settings)))
        return 0
    model, processor, template = open_model(options)
    side = Side(model, processor, template=template)
    store = AnswerStore(options.out / "replies", store_config(options, source, template, settings, tasks))
    store.open(write=True)
    embedder = open_embedder(options.embedder, images=options.images, device=options.device)[0] or HashedNgrams()
    content = control_curve(
        CurveRunner(side, store, batch_size=options.batch_size), arms, tasks["validation"], tasks["records"], settings,
        embedder=embedder, manifest=manifest_of(options, source, template),
    )  # fmt: skip
    path = write_curve(content, options.out)
    page = write_page(path, options.out / "page.html", options.association)
    print("\n".join(summary(content)))
    print(f"written: {path}, .csv, {page}")
    return 0


def settings_of(options: Namespace) -> CurveSettings:
    """The curve's settings. Raises ValueError naming the option."""
    if options.seeds < 1 or options.batch_size < 1 or options.sentences < 1:
        raise ValueError("--seeds, --batch-size and --sentences: at least 1")
    return CurveSettings(
        dial=tuple(sorted(options.dial)), seeds=tuple(range(options.seeds if options.temperature else 1)),
        decoding=Decoding(temperature=options.temperature), sentences=options.sentences, diversity=options.diversity,
        examples=options.examples, draws=options.draws, seed=options.seed,
    )  # fmt: skip


def tasks_of(options: Namespace, source: ModelSource, name: str, vocabularies: Vocabularies) -> Tasks:
    """What is asked about one file of records: a caption of each image, and questions about the first of them."""
    file = getattr(options, name)
    records = read_records(file, limit=options.limit)
    prompt = options.prompt if options.prompt is not None else source.prompt or ""
    samples = list({s.group: s for s in samples_from_records(records, options.images, prompt=prompt)}.values())
    if any(sample.image is None for sample in samples):
        raise ValueError(f"{file}: a record has no image; a control curve is about images")
    truth = {r.image_id or r.id: sorted(r.objects) for r in records if r.objects is not None}
    return Tasks(
        captions=samples,
        truth=truth if all(sample.group in truth for sample in samples) else None,
        vocabulary=read_vocabulary(options.vocabulary, vocabularies),
        questions=_questions(options, truth, samples),
        images={sample.group: sample.image for sample in samples},
        max_new_tokens=options.max_new_tokens,
    )


def _questions(options: Namespace, truth: Mapping[str, Sequence[str]], samples) -> dict[str, list]:
    """POPE about the first images whose objects are known; frequencies are those of the file."""
    chosen = {s.group: truth[s.group] for s in samples[: options.pope_images] if s.group in truth}
    template = options.question or QUESTION
    return {
        split: build_questions(chosen, split, seed=options.seed, counts_from=truth, template=template)
        for split in POPE_SPLITS if chosen
    }  # fmt: skip


def read_vocabulary(name: str, vocabularies: Vocabularies) -> Mapping[str, str]:
    """Words of objects by the name of a vocabulary, or from a JSON file {word: object}."""
    if name in vocabularies:
        return vocabularies[name]()
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"--vocabulary {name}: neither {' nor '.join(vocabularies)} nor a file")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"--vocabulary {path}: expected {{word: object}}")
    return content


def arms_of(options: Namespace, source: ModelSource, tasks: Mapping[str, Tasks]) -> list[Arm]:
    """The method and its ablations. Raises ValueError for images that the direction was made of."""
    if (options.data is None) == (options.steer is None):
        raise ValueError("give --data (extracted states) or --steer (an artefact)")
    if options.data is not None:
        made = _source(options, source)
        fitted = set(made.features.groups)
        if (options.data / "rows.jsonl").is_file():
            fitted |= images_of_states(options.data)
        names = list(options.ablations)
    else:
        made = load_steerer(options.steer, model=source.folder)
        names = [name for name in options.ablations if name not in PAIRED or options.ablations != list(ABLATIONS)]
        fitted = set().union(*fitted_images([options.steer]).values())
        if not fitted:
            print(
                f"{options.steer} does not say which images it was made of; see that none of them is asked", flush=True
            )
    for name, asked in tasks.items():
        shared = sorted(seen_images(asked, fitted))
        if shared:
            where = "--data" if options.steer is None else "what --steer was made of"
            raise ValueError(f"--{name}: image {shared[0]!r} ({len(shared)} in all) is in {where}; use other images")
    found = make_ablations(names, made, draws=options.control_draws, seed=options.seed)
    arms = [Arm(name, draw, steerer) for name, several in found.items() for draw, steerer in enumerate(several)]
    if PROMPT in names:
        arms.append(Arm(PROMPT, prefixes={-1.0: options.factual, 1.0: options.imaginative}))
    return arms


def _source(options: Namespace, source: ModelSource) -> Source:
    if (options.data / "rows.jsonl").is_file():
        features = features_from_extraction(SteeringData(options.data))
    else:
        features = AssociationFeatures.load(options.data)
    check_model(features.provenance.get("model"), source.folder, str(options.data))
    chosen = preset(options.preset)
    chosen = chosen if options.k is None else chosen.with_k(options.k)
    layers = layer_keys(options.layers) if options.layers else list(features.layers)
    return Source(features, chosen, tuple(layers))


def store_config(options: Namespace, source: ModelSource, template: str, settings: CurveSettings, tasks) -> dict:
    """Everything a reply depends on beside its key (arm, position, seed, id)."""
    return {
        "model": source.fingerprint, "template": template, "dtype": options.dtype,
        "temperature": settings.decoding.temperature,
        **{name: tasks_digest(asked) for name, asked in tasks.items()},
    }  # fmt: skip


def manifest_of(options: Namespace, source: ModelSource, template: str) -> dict[str, Any]:
    """What made the curve, for the files."""
    if options.data is None:
        made = {"steer": str(options.steer), "vectors": read_steering_manifest(options.steer)["sha256"]}
    else:
        made = {"data": str(options.data), "preset": options.preset, "k": options.k, "layers": options.layers}
    return {
        "model": source.describe(), "template": template, **made,
        "records": str(options.records), "validation": str(options.validation), "prompt": options.prompt,
        "versions": versions(), "command": shlex.join(["steer.py", *sys.argv[1:]]),
    }  # fmt: skip


def plan_lines(arms: Sequence[Arm], tasks: Mapping[str, Tasks], settings: CurveSettings) -> list[str]:
    """What a run would ask, without opening a model."""
    asked, validation = 0, tasks["validation"]
    questions = {q.question_id for split in validation.questions.values() for q in split}
    for arm in arms:
        asked += len(arm.positions(settings.dial)) * len(validation.captions) * len(settings.seeds)
    lines = [
        f"{len(arms)} arms ({', '.join(dict.fromkeys(arm.name for arm in arms))}), "
        f"{len(settings.dial)} positions, {len(settings.seeds)} seeds",
        f"validation: {len(validation.captions)} images, {asked} replies; {len(questions)} questions at each position",
        f"test: {len(tasks['records'].captions)} images at -1, 0, +1 and the chosen positions",
        "no model was opened",
    ]
    if validation.truth is None:
        lines.insert(3, "no CHAIR: a record of --validation has no objects")
    return lines


def summary(content: Mapping[str, Any]) -> list[str]:
    """What was found, in a few lines."""
    lines = []
    for row in content["spearman"]:
        if row["measure"] in ("CHAIR_i", "recall", content["pareto"]["diversity"], "nll") and row["value"] is not None:
            bounds = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
            lines.append(
                f"Spearman with the dial: {row['measure']:12} {row['ablation']:15} {row['value']:+.2f}{bounds}"
            )
    usable = next(row for row in content["usable"] if row["ablation"] == FULL)
    lines.append(f"usable from {usable['low']:g} to {usable['high']:g}")
    for name, c in content["chosen"].items():
        measure = "CHAIR_i" if name == "faithful" else content["pareto"]["diversity"]
        try:
            found = value_at(content, measure, c, split="test")
        except KeyError:
            continue
        if found["value"] is None:
            lines.append(f"{name}: c = {c:g}, {measure} is undefined on test")
            continue
        text = f"{name}: c = {c:g}, {measure} on test {found['value']:.3f}"
        if found["difference"] is not None:
            low, high = found["difference_low"], found["difference_high"]
            text += f", {found['difference']:+.3f} from c = 0"
            text += "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        lines.append(text)
    return lines
