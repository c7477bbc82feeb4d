"""Combinations of settings that could only be ignored or fail later: when each is wrong, and what to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hacl.config_metrics import unknown_metric, validation_metrics
from hacl.config_ranges import too_small

Rule = tuple[Callable[[Any], bool], str]


def _rates(config: Any) -> Any:
    return config.model.learning_rate


def _stage(config: Any) -> int | None:
    """ZeRO stage as far as it can be read here; a missing or damaged JSON file is reported where it is opened."""
    plan = config.train.deepspeed
    if not isinstance(plan, str):
        return plan
    try:
        content = json.loads(Path(plan).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return content.get("zero_optimization", {}).get("stage", 0)


def _needs_hallucinated(config: Any) -> bool:
    """Whether a term is on that acts on hallucinated captions alone."""
    names = ("likelihood_margin_weight", "text_margin_weight", "t2i_hard_weight")
    return any(getattr(config.objective, name) for name in names)


def makes_trees(objective: Any) -> bool:
    """Whether sequences of an objective branch, so that attention needs more than sequence boundaries."""
    return objective.form == "eos_branch" or objective.share_prefixes


def _shares_something(config: Any) -> bool:
    """Whether a step decodes several texts of one sample."""
    objective = config.objective
    if objective.likelihood_margin_weight:
        return True
    is_cached = _rates(config).llm == 0 and (config.train.cache_text_states or config.train.text_cache is not None)
    several = objective.num_hallucinated > 0 or objective.num_captions > 1
    return bool(objective.contrastive_weight) and several and not is_cached


RULES: list[Rule] = [
    (
        lambda c: (
            max(_rates(c).vision, _rates(c).projector, _rates(c).llm) == 0
            and (c.objective.contrastive_weight == 0 or _rates(c).heads == 0)
        ),
        "every model.learning_rate is 0: nothing would train",
    ),
    (lambda c: c.model.lora.rank > 0 and _rates(c).llm == 0, "model.lora.rank > 0 needs model.learning_rate.llm > 0"),
    (lambda c: c.model.load_in_4bit and c.model.lora.rank == 0, "model.load_in_4bit needs model.lora.rank > 0"),
    (
        lambda c: c.model.load_in_4bit and _stage(c) == 3,
        "model.load_in_4bit does not work with ZeRO-3; use train.deepspeed: 2",
    ),
    (lambda c: c.data.max_caption_length < 4, "data.max_caption_length must be at least 4: BOS, some text, EOS"),
    (
        lambda c: not 0 <= c.data.allow_missing_hallucinated <= 1,
        "data.allow_missing_hallucinated must be within [0, 1]",
    ),
    (lambda c: not 0 <= c.data.max_bad_fraction < 1, "data.max_bad_fraction must be within [0, 1)"),
    (
        lambda c: not 0 <= c.data.max_unlabelled_fraction <= 1,
        "data.max_unlabelled_fraction must be within [0, 1]",
    ),
    (
        lambda c: c.data.max_bad_fraction > 0 and c.train.cache_vision_features,
        "train.cache_vision_features reads every image before training and can leave none out; set it to false with "
        "data.max_bad_fraction > 0",
    ),
    (
        lambda c: (
            c.objective.lm_weight == 0
            and c.objective.contrastive_weight == 0
            and c.objective.likelihood_margin_weight == 0
        ),
        "every loss weight of objective is 0: nothing to learn",
    ),
    (
        lambda c: (
            c.objective.contrastive_weight == 0 and (c.objective.text_margin_weight or c.objective.t2i_hard_weight)
        ),
        "objective.text_margin_weight and objective.t2i_hard_weight are terms of the contrastive loss; they need "
        "objective.contrastive_weight > 0",
    ),
    (
        lambda c: c.objective.num_hallucinated == 0 and _needs_hallucinated(c),
        "objective.likelihood_margin_weight, objective.text_margin_weight and objective.t2i_hard_weight need "
        "hallucinated captions: set objective.num_hallucinated to 1 or more, or these weights to 0",
    ),
    (
        lambda c: c.objective.likelihood_margin_weight > 0 and c.objective.likelihood_margin_beta <= 0,
        "objective.likelihood_margin_beta must be above 0: at 0 the margin has no gradient, below it is turned round",
    ),
    (
        lambda c: (
            c.objective.likelihood_margin_weight == 0
            and (c.objective.likelihood_margin != 0 or c.objective.likelihood_margin_beta != 1)
        ),
        "objective.likelihood_margin and objective.likelihood_margin_beta shape a term that is off; it needs "
        "objective.likelihood_margin_weight > 0",
    ),
    (
        lambda c: c.objective.text_margin_weight == 0 and c.objective.text_margin != 0,
        "objective.text_margin shapes a term that is off; it needs objective.text_margin_weight > 0",
    ),
    (
        lambda c: c.objective.hard_weight == 0 and c.objective.hard_margin != 0,
        "objective.hard_margin moves hallucinated captions in the denominator; it needs objective.hard_weight > 0",
    ),
    (
        lambda c: c.objective.positives == "log_sum" and c.objective.exclude_other_positives,
        "objective.exclude_other_positives acts on the denominators of objective.positives=mean_log; log_sum has all "
        "positives in one numerator",
    ),
    (
        lambda c: c.objective.head == "none" and (c.objective.projection_size is not None or c.objective.shared_head),
        "objective.projection_size and objective.shared_head describe a head; they need objective.head=linear or mlp",
    ),
    (
        lambda c: (
            c.objective.contrastive_weight == 0
            and c.log.diagnostic_steps == 0
            and (
                c.objective.form == "strict"
                or c.objective.layer is not None
                or "mean" in (c.objective.image_pool, c.objective.text_pool)
            )
        ),
        "objective.form=strict, objective.image_pool, objective.text_pool and objective.layer say how representations "
        "are read, which nothing does here; they need objective.contrastive_weight > 0 or log.diagnostic_steps > 0",
    ),
    (
        lambda c: c.train.cache_vision_features and _rates(c).vision > 0,
        "train.cache_vision_features=true, but model.learning_rate.vision > 0 changes the features in training",
    ),
    (
        lambda c: c.train.text_cache is not None and _rates(c).llm > 0,
        "train.text_cache is set, but the decoder trains (model.learning_rate.llm > 0, with LoRA too), so states of "
        "texts change from step to step",
    ),
    (
        lambda c: c.objective.learn_temperature and (_rates(c).heads == 0 or c.objective.contrastive_weight == 0),
        "objective.learn_temperature needs model.learning_rate.heads > 0 and objective.contrastive_weight > 0",
    ),
    (
        lambda c: c.objective.queue_size > 0 and c.objective.contrastive_weight == 0,
        "objective.queue_size keeps candidates of the contrastive loss; it needs objective.contrastive_weight > 0",
    ),
    (
        lambda c: (
            c.objective.queue_size == 0 and (c.objective.queue_hallucinated or c.objective.queue_dtype != "float32")
        ),
        "objective.queue_hallucinated and objective.queue_dtype say what a queue holds; they need "
        "objective.queue_size > 0",
    ),
    (
        lambda c: c.objective.queue_hallucinated and c.objective.hard_scope != "global",
        "objective.queue_hallucinated makes past hallucinated captions negatives of every image; it needs "
        "objective.hard_scope=global",
    ),
    (
        lambda c: (
            c.objective.queue_hallucinated and (c.objective.num_hallucinated == 0 or c.objective.hard_weight == 0)
        ),
        "objective.queue_hallucinated needs objective.num_hallucinated > 0 and objective.hard_weight > 0",
    ),
    (
        lambda c: c.objective.num_hallucinated == 0 and c.objective.hard_scope != "own",
        "objective.hard_scope says whose hallucinated captions are negatives; it needs objective.num_hallucinated > 0",
    ),
    (
        lambda c: not 0 < c.objective.temperature_min <= c.objective.temperature <= c.objective.temperature_max,
        "objective.temperature must lie within [temperature_min, temperature_max], above 0",
    ),
    (
        lambda c: c.data.shuffle_buffer is not None and not c.data.stream,
        "data.shuffle_buffer shuffles a stream; without data.stream=true all records are shuffled together",
    ),
    (
        lambda c: c.data.stream and c.train.grouping != "none",
        "train.grouping sorts all records by length, which a stream does not hold; leave it at none with data.stream",
    ),
    (
        lambda c: c.data.stream and c.train.cache_vision_features,
        "train.cache_vision_features needs the list of all images, which a stream does not hold; set it to false with "
        "data.stream=true",
    ),
    (
        lambda c: (
            c.data.stream
            and c.train.cache_text_states
            and c.train.text_cache is None
            and c.objective.contrastive_weight > 0
            and _rates(c).llm == 0
        ),
        "train.cache_text_states needs the texts of all records, which a stream does not hold; with data.stream=true "
        "make the states beforehand (data_prep/cache_text.py) and name them in train.text_cache, or set "
        "train.cache_text_states=false",
    ),
    (
        lambda c: (
            c.objective.lm_loss != "auto" and c.objective.lm_weight == 0 and c.objective.likelihood_margin_weight == 0
        ),
        "objective.lm_loss says how the generation loss is computed; it needs objective.lm_weight > 0",
    ),
    (
        lambda c: c.objective.lm_loss == "liger" and c.objective.likelihood_margin_weight,
        "objective.lm_loss=liger gives no losses of single sequences, which objective.likelihood_margin_weight needs; "
        "use objective.lm_loss=chunked",
    ),
    (
        lambda c: c.objective.lm_loss in ("chunked", "liger") and _stage(c) == 3,
        "objective.lm_loss=chunked and liger do not work with ZeRO-3, which gathers the LM head once per call and on "
        "all ranks together; use objective.lm_loss=auto (plain there) or ZeRO-2",
    ),
    (
        lambda c: c.train.compile and c.train.length_multiple < 16,
        "train.compile makes code for every length of the rows; let few occur with train.length_multiple=64 or 128",
    ),
    (
        lambda c: c.train.compile and _stage(c) == 3,
        "train.compile does not work with ZeRO-3, whose hooks gather the weights inside the blocks; use "
        "train.deepspeed: 2 or train.compile=false",
    ),
    (
        lambda c: c.train.compile and c.model.attn_implementation in ("segments", "flash_attention_2"),
        "train.compile needs shapes that repeat, and model.attn_implementation=segments and flash_attention_2 take "
        "the lengths of each batch; use auto, sdpa or flex_attention",
    ),
    (
        lambda c: (
            c.objective.form == "eos_branch"
            and (c.objective.image_pool != "last" or c.objective.contrastive_weight == 0)
        ),
        "objective.form=eos_branch reads the image state at an EOS; it needs objective.image_pool=last and "
        "objective.contrastive_weight > 0",
    ),
    (
        lambda c: c.model.attn_implementation == "flash_attention_2" and makes_trees(c.objective),
        "model.attn_implementation=flash_attention_2 sees independent sequences only; objective.form=eos_branch and "
        "objective.share_prefixes need auto, flex_attention, segments or sdpa",
    ),
    (
        lambda c: c.objective.share_prefixes and not _shares_something(c),
        "objective.share_prefixes has nothing to share: it needs several captions or hallucinated captions per sample "
        "(objective.num_captions, objective.num_hallucinated) that are decoded in the step, which they are not where "
        "the decoder is frozen and their states are cached (train.cache_text_states, train.text_cache)",
    ),
    (
        lambda c: c.log.peak_tflops is not None and c.log.peak_tflops <= 0,
        "log.peak_tflops must be above 0 (null: that of a known GPU)",
    ),
    (lambda c: c.train.epochs <= 0, "train.epochs must be above 0"),
    (lambda c: c.train.timeout_minutes <= 0, "train.timeout_minutes must be above 0"),
    (lambda c: c.train.preempt_exit_code > 255, "train.preempt_exit_code is an exit status: 0 to 255"),
    (
        lambda c: c.train.on_nonfinite == "skip" and _stage(c) == 0,
        "train.on_nonfinite=skip needs an engine that can leave an update out: train.deepspeed=null, 1, 2 or 3",
    ),
    (
        lambda c: c.train.on_nonfinite == "raise" and c.train.max_nonfinite_skips != 10,
        "train.max_nonfinite_skips counts what train.on_nonfinite=skip leaves out; give that too",
    ),
    (
        lambda c: c.train.grad_cache and (c.train.chunks_per_step == 1 or c.objective.contrastive_weight == 0),
        "train.grad_cache makes the micro-batches of a step one contrastive batch; it needs "
        "train.gradient_accumulation_steps > 1 or train.grad_cache_chunk, and objective.contrastive_weight > 0",
    ),
    (
        lambda c: c.train.grad_cache_chunk is not None and not c.train.grad_cache,
        "train.grad_cache_chunk cuts the batch of train.grad_cache; set that to true",
    ),
    (
        lambda c: (c.train.grad_cache_chunk or 0) >= c.train.per_device_batch_size,
        "train.grad_cache_chunk must be smaller than train.per_device_batch_size, which it cuts; leave it out where "
        "the micro-batch is to run at once",
    ),
    (
        lambda c: not isinstance(c.train.deepspeed, str) and c.train.deepspeed not in (None, 0, 1, 2, 3),
        "train.deepspeed must be a stage 0-3, a JSON file or null",
    ),
    (
        lambda c: (
            c.train.reduce_once
            and (c.train.deepspeed in (None, 0, 1) or c.train.chunks_per_step == 1 or c.train.offload_optimizer)
        ),
        "train.reduce_once keeps the gradients of several micro-batches whole: it needs train.deepspeed 2 or 3 or a "
        "JSON file, train.gradient_accumulation_steps > 1 or train.grad_cache_chunk, and train.offload_optimizer=false",
    ),
    (
        lambda c: c.train.offload_optimizer and isinstance(c.train.deepspeed, str),
        "train.offload_optimizer is not applied to a DeepSpeed JSON file; write offload_optimizer there, or give "
        "train.deepspeed as a stage",
    ),
    (
        lambda c: c.train.offload_optimizer and c.train.deepspeed in (None, 0),
        "train.offload_optimizer needs train.deepspeed 1, 2 or 3",
    ),
    (
        lambda c: c.train.scheduler == "constant" and c.train.warmup > 0,
        "train.scheduler=constant has no warm-up; use train.scheduler=constant_with_warmup or set train.warmup=0",
    ),
    (lambda c: c.train.eval_steps > 0 and not c.data.eval_path, "train.eval_steps needs data.eval_path"),
    (lambda c: c.train.best_metric is not None and not c.data.eval_path, "train.best_metric needs data.eval_path"),
    (
        lambda c: c.train.best_metric is not None and c.train.save_steps == 0,
        "train.best_metric chooses among checkpoints; it needs train.save_steps > 0",
    ),
    (
        lambda c: (
            c.train.best_metric is not None and (not c.train.eval_steps or c.train.save_steps % c.train.eval_steps != 0)
        ),
        "train.best_metric needs train.eval_steps > 0 and train.save_steps a multiple of it",
    ),
    (
        lambda c: c.train.best_is_greater and c.train.best_metric is None,
        "train.best_is_greater says how to compare train.best_metric; give that too",
    ),
]


def broken_rule(config: Any) -> str | None:
    """What is wrong with a Config, in its own keys, or None."""
    if (problem := too_small(config)) is not None:
        return problem
    for is_broken, message in RULES:
        if is_broken(config):
            return message
    if unknown_metric(config):
        known = ", ".join(sorted(f"eval_{name}" for name in validation_metrics(config.objective)))
        return f"train.best_metric={config.train.best_metric}: no such metric with this objective; there are {known}"
    return None
