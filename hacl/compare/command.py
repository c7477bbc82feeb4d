"""What `scripts/compare.py` does with its arguments: one function per sub-command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hacl.compare.analysis import AnalysisSettings, analyse
from hacl.compare.comparison import Comparison, ComparisonSettings, read_text
from hacl.compare.paired_features import load_pairs
from hacl.compare.plain import plain, write_tables
from hacl.compare.steps import drift_of_stores, fit_concepts, ground_concepts, measure_shift, shift_words
from hacl.representations import FeatureStore
from hacl.representations.dictionaries import Dictionary
from hacl.representations.manifest import write_json

POPE_SPLITS = ("random", "popular", "adversarial")
Vocabularies = dict[str, Callable[[], dict[str, str]]]
Report = Callable[[str], Path]


def execute(options: argparse.Namespace, vocabularies: Vocabularies, report: Report) -> int:
    """Run the sub-command; the exit status (1 where a gate was asked for and controls beat the method).

    vocabularies: the built-in ones of `--vocabulary`, by name; report: writes the page of a folder, returns its path.

    Raises:
        ValueError, FileNotFoundError: what is wrong, naming the argument or the file.
    """
    if options.command in ("run", "behaviour"):
        return _compare(options, vocabularies, report)
    if options.command == "report":
        print(f"written: {report(options.out)}")
        return 0
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "capture": _capture, "inspect": _inspect, "concepts": _concepts, "vectors": _vectors, "recover": _recover,
        "difference": _difference, "drift": _drift, "import-xlvlms": _import,
    }  # fmt: skip
    commands[options.command](options)
    return 0


def _compare(options: argparse.Namespace, vocabularies: Vocabularies, report: Report) -> int:
    comparison = Comparison(settings_of(options), progress=not options.quiet)
    if getattr(options, "dry_run", False):
        print(plan_text(comparison))
        return 0
    wanted = not getattr(options, "no_behaviour", False)
    tasks: dict[str, Any] = {}
    if wanted:  # before hours of capture: it may be refused
        tasks = _tasks(options, comparison, vocabularies)
        comparison.parted, comparison.steered_layers()
    comparison.out.mkdir(parents=True, exist_ok=True)
    resolved = {name: value for name, value in vars(options).items() if name != "config"}
    write_json(comparison.out / "config.json", plain(resolved | {"prompt": comparison.prompt}))
    if options.command == "run":
        for found in comparison.analyse(comparison.capture()).values():
            print(f"layer {found['layer']}, {found['selector']}: {found['verdict']}")
    failures: list[str] = []
    if wanted:
        found = comparison.recover(**tasks)
        print(found["verdict"])
        failures = found["gate_failures"]
    print(f"written: {report(options.out)}")
    if options.gate and failures:
        print("gate: " + "; ".join(failures))
        return 1
    return 0


def settings_of(options: argparse.Namespace) -> ComparisonSettings:
    """Settings from the arguments of `run` or `behaviour`."""
    device, dtype = _where(options)
    behaviour = {
        "concepts": options.behaviour_concepts, "rank": options.rank, "alphas": tuple(options.alphas),
        "policies": tuple(options.policies), "text": options.answer, "position": options.position,
        "random_draws": options.random_controls, "seed": options.seed, "measured": tuple(sorted(options.measure)),
    }  # fmt: skip
    states = {"select": tuple(options.select), "mode": options.mode} if options.command == "run" else {}
    return ComparisonSettings(
        original=options.original, tuned=options.tuned, base=options.base, records=options.records,
        image_root=options.image_root, out=options.out, prompt=options.prompt, template=options.template,
        captions=options.captions, limit=options.limit, layers=tuple(options.layers),
        answer=options.answer, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens,
        dtype=dtype, device=device, fit_share=options.fit_share, analysis=_analysis(options), behaviour=behaviour,
        behaviour_layers=tuple(options.behaviour_layers), **states,
    )  # fmt: skip


def _analysis(options: argparse.Namespace) -> AnalysisSettings:
    """Those settings that the sub-command has options for."""
    names = AnalysisSettings.__dataclass_fields__
    return AnalysisSettings(
        **{name: value for name, value in vars(options).items() if name in names and name != "rank"}
    )


def _where(options: argparse.Namespace) -> tuple[str, str]:
    from hacl.evaluation.runner.ranks import local_device

    device = local_device(options.device)
    return device, options.dtype or ("bfloat16" if device.startswith("cuda") else "float32")


def plan_text(comparison: Comparison) -> str:
    """What `run` would do, with sizes."""
    from hacl.representations.parts import find_parts

    settings, parts = comparison.settings, find_parts(comparison.models[0])
    layers, samples = parts.resolve(comparison.layers()), comparison.samples
    fit_on, measure_on, _ = comparison.parted
    rows = len(samples) * len(layers) * len(settings.select)
    first = samples[0]
    return "\n".join(
        [
            f"original   {comparison.sources[0].describe()}",
            f"tuned      {comparison.sources[1].describe()}" + (" (one load)" if comparison.one_load else ""),
            f"samples    {len(samples)} of {len({s.group for s in samples})} images; first: {first.id}, "
            f"{first.prompt!r} -> {first.answer!r}",
            f"template   {comparison.template}",
            f"layers     {', '.join(layers)} of {len(parts.blocks)} blocks, width {parts.hidden_size}",
            f"states     {', '.join(settings.select)}: about {rows * parts.hidden_size * 4 / 1e6:.1f} MB per model "
            "at one row each",
            f"behaviour  fitted on {len(fit_on)} samples, chosen and confirmed on {len(measure_on)}",
        ]
    )


def _tasks(options: argparse.Namespace, comparison: Comparison, vocabularies: Vocabularies) -> dict[str, Any]:
    """Options of `tasks_for`: object words, questions, and samples outside the domain."""
    tasks: dict[str, Any] = {"max_new_tokens": options.max_new_tokens}
    if options.vocabulary:
        tasks["vocabulary"] = _vocabulary(options.vocabulary, vocabularies)
    elif options.pope_images:
        raise ValueError("--pope-images asks about objects; name them with --vocabulary")
    if options.styles:
        tasks["styles"] = {name: _style_words(name) for name in options.styles}
    if options.pope_images:
        tasks |= _questions(comparison, options.pope_images, options.seed)
    if options.outside:
        from hacl.data.records import read_records
        from hacl.representations import samples_from_records

        root = options.outside_root or options.image_root
        tasks["outside"] = samples_from_records(read_records(options.outside), root, prompt=comparison.prompt)
    return tasks


def _style_words(name: str) -> tuple[str, ...]:
    from hacl.compare.styles import STYLES
    from hacl.representations.words import WORD_CLASSES

    known = {**{key: tuple(words) for key, words in WORD_CLASSES.items()}, **{k: s.words for k, s in STYLES.items()}}
    if name not in known:
        raise ValueError(f"--styles {name}: one of {', '.join(sorted(known))}")
    return known[name]


def _vocabulary(name: str, vocabularies: Vocabularies) -> dict[str, str]:
    if name in vocabularies:
        return vocabularies[name]()
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"--vocabulary {name}: neither {' nor '.join(vocabularies)} nor a file")
    content = json.loads(read_text(path))
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"--vocabulary {path}: expected {{word: object}}")
    return content


def _questions(comparison: Comparison, images: int, seed: int) -> dict[str, Any]:
    """POPE questions about the first images on which nothing is fitted or chosen; popularity is that of all records."""
    from hacl.evaluation.pope import build_questions

    files = {sample.group: sample.image for sample in comparison.parted[2]}
    objects = {r.image_id or r.id: r.objects for r in comparison.records if r.objects is not None}
    chosen = [image for image in files if image in objects][:images]
    truth = {image: objects[image] for image in chosen}
    questions = {split: build_questions(truth, split, seed=seed, counts_from=objects) for split in POPE_SPLITS}
    return {"questions": questions, "images": {image: files[image] for image in chosen}}


def _capture(options: argparse.Namespace) -> None:
    from hacl.data.records import read_records
    from hacl.evaluation.runner.ranks import join_ranks, leave_ranks
    from hacl.evaluation.runner.source import find_model
    from hacl.representations import samples_from_records
    from hacl.representations.capture import capture
    from hacl.representations.parts import FINAL_NORM, find_parts

    source = find_model(options.model, base=options.base)
    device, dtype = _where(options)
    model = source.load(dtype=dtype, device=device)
    prompt = options.prompt if options.prompt is not None else source.prompt or ""
    samples = samples_from_records(
        read_records(options.records, limit=options.limit), options.image_root, prompt=prompt, captions=options.captions
    )
    count = len(find_parts(model).blocks)
    answers = json.loads(read_text(Path(options.answers))) if options.answers else "reference"
    ranks = join_ranks()
    capture(
        model, source.processor(), samples,
        layers=options.layers or [*sorted({count // 4, count // 2, 3 * count // 4, count - 1}), FINAL_NORM],
        select=options.select, mode=options.mode, answer=answers,
        template=options.template or source.template or "plain", batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens, fingerprint=source.fingerprint, out=options.out,
        ranks=ranks, progress=not options.quiet,
    )  # fmt: skip
    leave_ranks(ranks)
    if ranks.first:
        print(inspect_text(Path(options.out)))


def _inspect(options: argparse.Namespace) -> None:
    for path in options.paths:
        print(inspect_text(path))


def inspect_text(path: Path) -> str:
    """A few lines on what lies in a folder.

    Raises:
        FileNotFoundError: it holds nothing that is known here.
    """
    if (path / "dictionary.json").is_file():
        found = Dictionary.load(path)
        return f"{path}: {found.method}, {len(found.concepts_KD)} concepts, {found.params}, {found.provenance}"
    if (path / "shift_vectors.json").is_file():
        content = json.loads(read_text(path / "shift_vectors.json"))
        return f"{path}: shift vectors, {content['settings']}, {content['provenance']}, overall {content['overall']}"
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{path}: no feature store, dictionary, shift vectors or steering artefact")
    content = json.loads(read_text(manifest))
    if "kind" in content and "sha256" in content:
        kept = {key: content[key] for key in ("kind", "layers", "alpha", "policy", "norm", "settings", "provenance")}
        return f"{path}: steering artefact {json.dumps(kept)}"
    store = FeatureStore(path, partial=True)
    state = "complete" if content["complete"] else "not finished"
    lines = [f"{path}: feature store, {state}, {len(store)} rows of width {store.width}, {content['dtype']}"]
    lines += [
        f"  {key}: {content[key]}" for key in ("model", "layers", "selectors", "mode", "answer") if key in content
    ]
    lines += [f"  row {row.row}: {row.sample}, {row.key}, {row.token!r}" for row in store.rows[:3]]
    return "\n".join(lines)


def _concepts(options: argparse.Namespace) -> None:
    pairs = load_pairs(options.features, options.features, layer=options.layer, selector=options.selector)
    rule = _analysis(options).rule()
    if rule is None:
        pairs = replace(pairs, readout=None)
    found = fit_concepts(pairs, options.concepts, method=options.method, seed=options.seed)
    found.save(options.out)
    grounded = ground_concepts(pairs, found, rule=rule)
    write_tables(options.out, "grounding", grounded.to_json(), grounded.tables())
    for row in grounded.rows:
        print(
            f"{row['concept']:4d}  n {row['n']:<6d}{' '.join(row['words'] or ['-']):60s}  {' '.join(row['top_images'])}"
        )


def _vectors(options: argparse.Namespace) -> None:
    pairs = load_pairs(
        options.original, options.tuned, layer=options.layer, selector=options.selector, force=options.force
    )
    settings = _analysis(options)
    learnt = fit_concepts(pairs, settings.concepts, method=settings.method, seed=settings.seed)
    found = measure_shift(
        pairs, learnt, aggregate=settings.aggregate, min_size=settings.min_size, bootstrap=settings.bootstrap,
        seed=settings.seed,
    )  # fmt: skip
    learnt.save(Path(options.out) / "concepts_original")
    found.save(options.out)
    words = shift_words(pairs, found, settings.rule()) if settings.words != "none" else []
    write_tables(options.out, "shift_vectors", found.to_json(), found.tables() | {"words": words})
    print(inspect_text(Path(options.out)))


def _recover(options: argparse.Namespace) -> None:
    pairs = load_pairs(
        options.original, options.tuned, layer=options.layer, selector=options.selector, force=options.force
    )
    found = analyse(pairs, _analysis(options))
    found.save(options.out)
    for row in found.recovery.controls:
        print(f"{row['control']:10s} R = {'n/a' if row['R'] is None else format(row['R'], '+.3f')}  {row['label']}")
    print(found.recovery.verdict())


def _difference(options: argparse.Namespace) -> None:
    from hacl.compare.behaviour import split_samples
    from hacl.compare.difference_run import steer_by_difference
    from hacl.compare.difference_sets import by_answer, by_answer_type, by_style
    from hacl.data.records import read_records
    from hacl.evaluation.runner.source import find_model
    from hacl.representations import samples_from_records

    source = find_model(options.model, base=options.base)
    device, dtype = _where(options)
    prompt = options.prompt if options.prompt is not None else source.prompt or ""
    records = read_records(options.records, limit=options.limit)
    samples = samples_from_records(records, options.image_root, prompt=prompt, captions=options.captions)
    made_of, measured = split_samples(samples, options.fit_share, options.seed)
    if options.style:
        sets = by_style(made_of, options.style)
    else:
        sets = (by_answer if options.answer else by_answer_type)(made_of, *(options.answer or options.answer_type))
    outside = []
    if options.outside:
        root = options.outside_root or options.image_root
        outside = samples_from_records(read_records(options.outside), root, prompt=prompt)
    found = steer_by_difference(
        source.load(dtype=dtype, device=device), source.processor(), sets, measured,
        layer=options.layer, folder=Path(options.out) / "features", alphas=options.alphas, outside=outside,
        concepts=options.concepts, select=options.select_by, policy=options.policy,
        template=options.template or source.template or "plain", max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size, seed=options.seed, progress=not options.quiet,
    )  # fmt: skip
    path = found.write(options.out)
    print(found.to_markdown())
    print(f"written: {path}")


def _drift(options: argparse.Namespace) -> None:
    from hacl.representations.manifest import SCHEMA

    named, stores = [_checkpoint(entry) for entry in options.checkpoint], []
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"--checkpoint: {', '.join(names)} are not distinct names; give NAME=PATH")
    for name, path in named:
        folder = Path(path)
        manifest = folder / "manifest.json"
        if not (manifest.is_file() and json.loads(read_text(manifest)).get("schema") == SCHEMA):
            folder = _captured(options, path, name)
        stores.append(folder)
    rule = _analysis(options).rule()
    found = drift_of_stores(
        stores, options.concepts, layer=options.layer, selector=options.selector, names=names,
        method=options.method, seed=options.seed, word_rule=rule, **({"words": None} if rule is None else {}),
    )  # fmt: skip
    path = write_tables(options.out, "drift", found.to_json(), found.tables())
    for row in found.rows:
        print(f"{row['checkpoint']:24s} cosine {row['cosine']:.4f}  relative shift {row['relative_magnitude']:.4f}")
    print(f"written: {path}")


def _checkpoint(entry: str) -> tuple[str, str]:
    """Name and path of `NAME=PATH`, or of a path alone (which may hold an equals sign)."""
    name, equals, path = entry.partition("=")
    if not equals or Path(entry).exists():
        name, path = Path(entry).name, entry
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"--checkpoint {entry}: {name!r} is no name for a folder; give NAME=PATH")
    return name, path


def _captured(options: argparse.Namespace, model: str, name: str) -> Path:
    """The feature store of a checkpoint, captured now."""
    if not (options.records and options.image_root):
        raise ValueError(f"--checkpoint {model} is no feature store; give --records and --image-root to capture it")
    chosen = argparse.Namespace(
        **{**vars(options), "model": model, "base": None, "captions": 1, "layers": [options.layer]},
        select=[options.selector], mode="teacher_forced", answers=None, max_new_tokens=1,
    )  # fmt: skip
    chosen.out = str(Path(options.out) / "features" / name)
    _capture(chosen)
    return Path(chosen.out)


def _import(options: argparse.Namespace) -> None:
    from hacl.representations.import_xlvlms import import_xlvlms

    print(inspect_text(import_xlvlms(options.file, options.out, keep_masked=options.keep_masked)))
