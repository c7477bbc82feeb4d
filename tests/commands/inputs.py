"""What lies in the folder of each page before its first command, under the names that the page uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.commands.table import SMALL


@dataclass(frozen=True)
class Page:
    """inputs: name in the documents -> maker in `world.py`; before: commands that make what a page takes for granted;
    core: executed in every test run, others with HACL_ALL_COMMANDS=1."""

    inputs: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    core: bool = False


EVALUATED = "--benchmark pope,chair --data benchmarks --prompt chair=describe/scene --max-new-tokens 4 --batch-size 32"
STAGE1 = f"configs/llava15_7b/stage1.yaml {SMALL}"

ASKED = "--images val2014 --max-new-tokens 2"


def swept(model: str, number: int) -> tuple[str, ...]:
    """Commands that leave a sweep of a model in runs/sweep-NUMBER."""
    rows = "pope/coco_pope_random.json"
    return (
        f"python scripts/steer.py extract --model {model} --rows {rows} --behaviours configs/steering/pope.yaml "
        f"--images val2014 --layers 12 --out states-{number}",
        f"python scripts/steer.py fit --data states-{number} --method mean --out mean-{number}",
        f"python scripts/steer.py sweep --model {model} --steer mean=mean-{number} --pope {rows} {ASKED} --alphas 1 "
        f"--objective pope_random_accuracy --out runs/sweep-{number}",
    )


PAGES: dict[str, Page] = {
    "CONTRIBUTING.md": Page(),
    "README.md": Page(
        inputs={
            "llava_pretrain.json": "llava_pretraining",
            "images": "pictures",
            "llava-1.5-7b-hf": "model",
            "llava-hf/llava-1.5-7b-hf": "model",
            "benchmarks": "benchmarks",
            "eval.jsonl": "records",
            "test.jsonl": "records",
            "coco_pope_adversarial.json": "pope",
        },
        before=(
            f"python scripts/evaluate.py --model llava-1.5-7b-hf {EVALUATED} --out runs/control/evaluation",
            "cp runs/control/evaluation/pope/predictions_adversarial.jsonl answers.jsonl",
        ),
        core=True,
    ),
    "docs/adding_a_family.md": Page(),
    "docs/baselines.md": Page(
        inputs={"MODEL": "model", "PAIRS.jsonl": "records", "images": "pictures", "DATA": "benchmarks"},
    ),
    "docs/chair_pope_data.md": Page(
        inputs={"annotations": "coco_folder", "captions.jsonl": "caption_answers", "data/coco-mini": "coco_mini"},
        core=True,
    ),
    "docs/compare.md": Page(
        inputs={
            "llava-1.5-7b-hf": "model",
            "exports/stage1": "other_model",
            "eval.jsonl": "records",
            "images": "pictures",
            "BASE": "model",
            "cache/smol/base": "model",
            "cache/smol/runs/hacl-0": "other_model",
            "cache/smol/records/test.jsonl": "records",
            "coco-mini": "pictures",
        },
        before=("python data_prep/make_scenes.py --output world --split test_like --size 16",),
    ),
    "docs/contrastive_batch.md": Page(),
    "docs/control_curve.md": Page(
        inputs={
            "MODEL": "model",
            "images": "pictures",
            "runs/pocket-full/world": "pictures",
            "hallucinated.jsonl": "records",
            "test.jsonl": "test_records",
            "validation.jsonl": "validation_records",
            "fit.jsonl": "records",
            "cache/pocket/BASE": "model",
        },
    ),
    "docs/creative.md": Page(
        inputs={
            "replies.jsonl": "replies",
            "verdicts.jsonl": "verdicts",
            "preferences.jsonl": "preferences",
            "captions.jsonl": "caption_answers",
            "models/ViT-L-14": "clip",
            "models/ViT-B-32": "clip",
            "images": "pictures",
            "val2014": "pictures",
        },
    ),
    "docs/data.md": Page(
        inputs={
            "llava_pretrain.json": "llava_pretraining",
            "captions_train2017.json": "coco_captions",
            "instances_train2017.json": "coco_instances",
            "coco-mini": "coco_mini",
            "images": "pictures",
            "coco": "pictures",
            "coco/train2017": "pictures",
            "train.jsonl": "records",
            "val.jsonl": "other_records",
            "llava-hf/llava-1.5-7b-hf": "model",
        },
        before=(
            "python data_prep/convert.py --input train.jsonl --to parquet --output train.parquet",
            "python data_prep/convert.py --input train.jsonl --to webdataset --images . --output shards/train-0.tar",
        ),
    ),
    "docs/diagnostics.md": Page(
        inputs={
            "BASE": "model",
            "RUN_OR_CHECKPOINT": "other_model",
            "benchmarks": "benchmarks",
            "eval.jsonl": "records",
            "images": "pictures",
            "cache/pocket/base-100-0": "model",
            "runs/pocket-full/control-100-0": "other_model",
            "runs/pocket-full/hacl_paper-100-0": "third_model",
            "runs/pocket-full/hacl_ours-100-0": "model",
            "runs/pocket-full/world/test_broken.jsonl": "records",
            "cache/smol/base": "model",
            "cache/smol/runs/control-0": "other_model",
            "cache/smol/runs/hacl-0": "third_model",
            "cache/smol/records/test.jsonl": "records",
            "data/coco-mini": "pictures",
        },
        before=tuple(
            f"python scripts/evaluate.py --model {model} {EVALUATED} --out {out}"
            for model, outs in {"BASE": ("RUN_A", "runs/a"), "RUN_OR_CHECKPOINT": ("RUN_B", "runs/b")}.items()
            for out in outs
        ),
    ),
    "docs/evaluate.md": Page(
        inputs={
            "exports/stage1": "model",
            "DATA": "benchmarks",
            "cache/pocket/base-0-c7c10fa491": "model",
            "cache/pocket/base-100-5412e36403": "other_model",
            "runs/pocket-full/control-100-0": "model",
            "runs/pocket-full/hacl_paper-100-0": "other_model",
            "runs/pocket-full/margin-100-0": "third_model",
            "cache/smol/base": "model",
            "cache/smol/runs/control-0": "other_model",
            "data/coco-mini": "coco_mini",
        },
        before=(
            f"python scripts/evaluate.py --model exports/stage1 {EVALUATED.replace('benchmarks', 'DATA')} "
            "--out runs/control/evaluation",
        ),
    ),
    "docs/export.md": Page(
        inputs={"llava-hf/llava-1.5-7b-hf": "model", "hallucinated.jsonl": "records"},
        before=(f"python train.py {STAGE1} data.path=hallucinated.jsonl train.output_dir=runs/stage1",),
    ),
    "docs/flexac.md": Page(
        inputs={"MODEL": "model", "images": "pictures", "hallucinated.jsonl": "records", "exported/model": "model"},
    ),
    "docs/hallucinated_captions.md": Page(inputs={"coco-mini": "coco_mini"}, core=True),
    "docs/interchange.md": Page(
        inputs={
            "llava-v1.5-7b": "original_llava",
            "pretrain": "original_projector",
            "llava-lora": "original_lora",
            "vicuna-7b-v1.5": "language_model",
            "vicuna-7b-v1.1": "language_model",
            "openai/clip-vit-large-patch14-336": "vision_tower",
            "openai/clip-vit-large-patch14": "vision_tower",
            "exports/stage1": "model",
            "CLIP-ViT-L-14-laion2B-s32B-b82K": "clip",
            "blip2-flan-t5-xxl": "blip2",
            "vicuna-7b-v0": "vicuna",
            "prerained_minigpt4_7b.pth": "minigpt4_map",
        },
    ),
    "docs/judge.md": Page(inputs={"predictions.jsonl": "mmhal_answers"}, core=True),
    "docs/kernels.md": Page(inputs={"llava-hf/llava-1.5-7b-hf": "model", "hallucinated.jsonl": "records"}),
    "docs/learn_to_steer.md": Page(
        inputs={
            "MODEL": "model",
            "coco_pope_random.json": "pope",
            "val2014": "pictures",
            "hallucinated.jsonl": "records",
            "images": "pictures",
            "llava_pope.pt": "network",
        },
    ),
    "docs/methods_compared.md": Page(),
    "docs/negatives_experiment.md": Page(
        inputs={
            "smol-text": "text_model",
            "smol-control": "model",
            "cache/pocket/base-100-5412e36403": "model",
            "coco60.jsonl": "plain_captions",
            "data/coco-mini": "pictures",
            "scenes100.jsonl": "plain_captions",
            "runs/pocket-negatives/world": "pictures",
        },
    ),
    "docs/performance.md": Page(inputs={"hallucinated.jsonl": "records", "run.yaml": "run_file"}),
    "docs/playground.md": Page(
        inputs={"exported/pocket": "model"},
        before=("python data_prep/make_scenes.py --output world --split train --size 24",),
    ),
    "docs/pocket.md": Page(),
    "docs/reproduce.md": Page(
        inputs={
            **{
                name: "pictures"
                for name in ("val2014", "train2014", "val2017", "LLaVA-Pretrain", "COCO", "VG", "VLGuard/benign")
            },
            **{f"exports/{name}": "model" for name in ("hacl", "control")},
            "exports/contrastive": "other_model",
            "llava-1.5-7b-hf": "model",
            "qwen2-vl": "qwen2_vl",
            "idefics2": "idefics2",
            "vg-colour.jsonl": "records",
            "vicuna-7b-v1.5": "language_model",
            "vicuna-7b-v1.1": "language_model",
            "openai/clip-vit-large-patch14-336": "vision_tower",
            "openai/clip-vit-large-patch14": "vision_tower",
            "blip2-flan-t5-xxl": "blip2",
            "vicuna-7b-v0": "vicuna",
            "images": "pictures",
            "blip_laion_cc_sbu_558k.json": "llava_pretraining",
            **{f"captions_{name}.json": "coco_captions" for name in ("val2017", "train2014")},
            **{f"instances_{name}.json": "coco_instances" for name in ("val2017", "train2014")},
            "region_descriptions.json": "genome_regions",
            "objects.json": "genome_objects",
            "MMHal-Bench": "mmhal",
            "POPE/output/coco": "pope_folder",
            "pope": "pope_folder",
            "MME": "mme",
            "coco": "coco_release",
            "data": "mm_safety",
            "benign.jsonl": "benign",
            "vqa.jsonl": "dialogues",
            "vdat.jsonl": "creation",
            "creation.jsonl": "creation",
            "creation": "pictures",
            "coco-test.jsonl": "test_records",
            "coco-val.jsonl": "validation_records",
            "llava_safety.pt": "network",
            "models/ViT-L-14-quickgelu": "clip",
        },
        before=(
            "python scripts/steer.py extract --model llava-1.5-7b-hf --records coco-test.jsonl --images train2014 "
            '--layers 0-31 --prompt "Tell a story." --template chat --pooling mean_answer --out runs/task_states',
        ),
    ),
    "docs/safety_steering.md": Page(inputs={"MODEL": "model", "data": "mm_safety"}),
    "docs/scale.md": Page(inputs={"llava-hf/llava-1.5-7b-hf": "model", "captions.jsonl": "records"}),
    "docs/scoring.md": Page(
        inputs={
            "answers.jsonl": "pope_answers",
            "coco_pope_random.json": "pope",
            "captions.jsonl": "caption_answers",
            "annotations": "coco_folder",
            "responses.json": "amber_answers",
            "AMBER/data": "amber",
            "nouns.jsonl": "amber_nouns",
            "similar.json": "similarities",
            "reviews.jsonl": "mmhal_reviews",
            "mme_answers.jsonl": "mme_answers",
            "scores.jsonl": "sugarcrepe_scores",
        },
    ),
    "docs/scoring_amber.md": Page(
        inputs={
            "responses.json": "amber_answers",
            "AMBER/data": "amber",
            "nouns.jsonl": "amber_nouns",
            "similar.json": "similarities",
        },
        core=True,
    ),
    "docs/smol.md": Page(),
    "docs/steering.md": Page(inputs={"cache/smol/base": "model"}),
    "docs/steering_sweep.md": Page(
        inputs={
            "MODEL": "model",
            "MODEL_2": "other_model",
            "MODEL_3": "third_model",
            "pope": "pope_folder",
            "val2014": "pictures",
            "questions.jsonl": "creation",
        },
        before=(*swept("MODEL", 1), *swept("MODEL_2", 2), *swept("MODEL_3", 3)),
    ),
    "docs/survival.md": Page(),
    "docs/tour.md": Page(
        inputs={
            "captions.jsonl": "plain_captions",
            "llava-1.5-7b-hf": "model",
            "llava-hf/llava-1.5-7b-hf": "model",
            "benchmarks": "benchmarks",
            "eval.jsonl": "records",
            "images": "pictures",
        },
        core=True,
    ),
    "docs/training.md": Page(inputs={"llava-hf/llava-1.5-7b-hf": "model", "hallucinated.jsonl": "records"}),
}
