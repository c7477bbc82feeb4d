"""Typed run configuration: dataclasses, one YAML file, `section.key=value` overrides; nothing is accepted and ignored.

Values are merged in this order, later wins: dataclass default, preset (`model.preset`), the file named by `defaults:`
(recursively, relative to the file that names it), the YAML file itself, command-line overrides. Unknown keys, duplicate
YAML keys and values of another type are errors that name the file, the key and the nearest valid name.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from hacl.config_io import ConfigError, from_dict, merge, parse_overrides, read_yaml, setting
from hacl.config_rules import broken_rule
from hacl.presets import PRESETS


@dataclass
class LearningRates:
    vision: float = setting(0.0, "vision tower; 0 = frozen")
    projector: float = setting(1e-3, "projector between vision tower and decoder; 0 = frozen")
    llm: float = setting(0.0, "decoder, embeddings and LM head, or with lora.rank > 0 the LoRA matrices; 0 = frozen")
    heads: float = setting(1e-3, "contrastive heads (and temperature if learnt); 0 = frozen at their initial values")


@dataclass
class LoraSettings:
    rank: int = setting(0, "rank of the LoRA matrices; 0 = no LoRA")
    alpha: float = setting(256.0, "LoRA scale numerator: the update is multiplied by alpha / rank")
    dropout: float = setting(0.05, "dropout on the input of the LoRA matrices")
    targets: list[str] = setting([], "leaf names of decoder linears to adapt; empty = all linears of the blocks")


@dataclass
class ModelConfig:
    path: str = setting("", "folder (or hub id) of a stock multimodal checkpoint that has its processor")
    revision: str | None = setting(None, "hub revision of the checkpoint; None = the default branch")
    preset: Literal["stage1", "stage1-vision", "stage1-llm", "stage2", "stage2-lora", "posthoc"] = setting(
        "stage1", "what trains and which losses: defaults beneath everything the YAML says"
    )
    learning_rate: LearningRates = setting(LearningRates, "peak learning rate per module")
    lora: LoraSettings = setting(LoraSettings, "low-rank adapters on the decoder")
    freeze: list[str] = setting([], "parts of the stock model that stay as they are whatever the rates say, as qformer")
    load_in_4bit: bool = setting(False, "quantise the frozen decoder to NF4 (CUDA and bitsandbytes only; needs lora)")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "dtype of loaded weights; trained ones are kept in fp32")
    attn_implementation: Literal["auto", "sdpa", "eager", "segments", "flex_attention", "flash_attention_2"] = setting(
        "auto", "attention of the decoder (docs/kernels.md); auto: by device and form. The tower has sdpa, or eager"
    )

    @property
    def tower_attention(self) -> str:
        """What a checkpoint is loaded with; the decoder of a run gets its own, see `hacl.training.kernels`."""
        return "eager" if self.attn_implementation == "eager" else "sdpa"


@dataclass
class DataConfig:
    path: list[str] = setting([], "training records, .json or .jsonl; a relative path is also tried under $HACL_DATA")
    stream: bool = setting(
        False, "read training records as they are needed and hold none; path may then also be .parquet, .tar or hub:..."
    )
    shuffle_buffer: int | None = setting(
        None, "with stream: records shuffled together, 1 keeps the order of the source; None = 8192"
    )
    eval_path: list[str] = setting([], "validation records; empty = no validation loss")
    image_root: str | None = setting(None, "folder of the image paths; None = the folder of the first file")
    max_records: int | None = setting(None, "read only the first n training records; None = all")
    template: Literal["plain", "chat"] = setting("plain", "plain: image, caption; chat: the chat template")
    prompt: str = setting("", "user text beside the image where a record has captions but no conversation")
    max_length: int = setting(2048, "longest generation sequence, in tokens with expanded image tokens")
    max_caption_length: int = setting(128, "longest caption or hallucinated caption, in tokens with BOS and EOS")
    allow_missing_hallucinated: float = setting(
        0.0, "share of captioned records that may lack a hallucinated caption (they train without one)"
    )
    max_bad_fraction: float = setting(
        0.0,
        "share of training samples that may be unreadable; they are replaced, counted; 0 = the first one ends the run",
    )
    max_unlabelled_fraction: float = setting(
        0.01, "share of samples that may have no token to learn (a cut answer); they are counted; more is an error"
    )
    seed: int = setting(0, "seed of sample order and of the captions drawn per epoch")


@dataclass
class ObjectiveConfig:
    form: Literal["in_place", "eos_branch", "strict"] = setting(
        "in_place",
        "where the image state is read. in_place: generation sequence; eos_branch: an EOS beside its continuation; "
        "strict: own sequence without BOS",
    )
    share_prefixes: bool = setting(
        False, "captions and hallucinated captions of a sample store the words they begin with in common once"
    )
    image_pool: Literal["last", "mean"] = setting("last", "image state: last position, or mean of image tokens")
    text_pool: Literal["last", "mean"] = setting("last", "pooling of caption states: last position (EOS), or mean")
    layer: int | None = setting(None, "decoder block whose output is pooled, 1..L; None = after the final norm")
    head: Literal["linear", "none", "mlp"] = setting("linear", "projection head; none = paper, linear = its code")
    shared_head: bool = setting(False, "one head for images and texts")
    projection_size: int | None = setting(None, "width of the contrastive space; None = a quarter of the hidden size")
    temperature: float = setting(0.07, "initial contrastive temperature")
    learn_temperature: bool = setting(False, "train the temperature (at the learning rate of the heads)")
    temperature_min: float = setting(0.01, "lower bound of the temperature")
    temperature_max: float = setting(0.5, "upper bound of the temperature")
    lm_weight: float = setting(1.0, "weight of the generation loss; 0 = contrastive only")
    lm_loss: Literal["auto", "plain", "chunked", "liger"] = setting(
        "auto", "logits of all label tokens at once, in chunks, or in Liger's kernel; auto: chunks above 256 MiB"
    )
    contrastive_weight: float = setting(1.0, "weight of (image-to-text + text-to-image) / 2; 0 = generation only")
    hard_scope: Literal["own", "local", "global"] = setting(
        "own", "whose hallucinated captions are negatives: own image (paper), this rank's (released code), all ranks'"
    )
    hard_weight: float = setting(1.0, "weight of hallucinated captions in the denominator (its log is added)")
    hard_margin: float = setting(0.0, "margin added to the similarity of hallucinated captions")
    positives: Literal["mean_log", "log_sum"] = setting("mean_log", "how several captions of an image combine")
    exclude_other_positives: bool = setting(False, "leave the other positives out of each positive's denominator")
    mask_false_negatives: bool = setting(True, "mask columns of the same image or with the same caption text")
    t2i_hard_weight: float = setting(0.0, "weight of the hallucinated-caption-to-image repulsion")
    text_margin_weight: float = setting(0.0, "weight of the direct true-against-hallucinated margin given the image")
    text_margin: float = setting(0.0, "margin of that term, in cosine")
    likelihood_margin_weight: float = setting(0.0, "weight of the likelihood margin log p(true) - log p(hallucinated)")
    likelihood_margin: float = setting(0.0, "margin of that term, in nats")
    likelihood_margin_beta: float = setting(1.0, "slope of that term")
    queue_size: int = setting(0, "samples of past steps kept as further candidates, over all ranks; 0 = no queue")
    queue_dtype: Literal["float32", "bfloat16"] = setting("float32", "dtype of what the queue stores")
    queue_hallucinated: bool = setting(
        False, "also queue hallucinated captions: hard negatives of every image (needs hard_scope=global)"
    )
    num_captions: int = setting(1, "true captions per image in the contrastive batch (C)")
    num_hallucinated: int = setting(1, "hallucinated captions per image (K); 0 = plain contrastive")


@dataclass
class TrainConfig:
    output_dir: str = setting("runs/hacl", "run folder: checkpoints, metrics.jsonl, TensorBoard events, config")
    epochs: float = setting(1.0, "passes over the records")
    max_steps: int | None = setting(None, "optimizer steps; overrides epochs when set")
    per_device_batch_size: int = setting(8, "samples per rank and micro-batch; one contrastive batch spans all ranks")
    per_device_eval_batch_size: int = setting(8, "samples per rank in validation")
    gradient_accumulation_steps: int = setting(
        1, "micro-batches per step; each is its own contrastive batch unless grad_cache"
    )
    grad_cache: bool = setting(
        False, "the micro-batches of a step are one contrastive batch, for one more forward pass (GradCache)"
    )
    grad_cache_chunk: int | None = setting(
        None, "with grad_cache: samples per rank that run at once, so that memory is theirs; None = the micro-batch"
    )
    deepspeed: int | str | None = setting(None, "ZeRO stage 0-3, path of a DeepSpeed JSON file, or null for none")
    reduce_once: bool = setting(
        False,
        "ZeRO-2 and 3: reduce gradients once a step, not per micro-batch; each rank holds them whole until then",
    )
    offload_optimizer: bool = setting(False, "ZeRO 1-3: keep optimizer state in CPU memory")
    bf16: bool = setting(False, "bf16 forward and backward, fp32 master weights")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass")
    compile: bool = setting(False, "compile the decoder blocks with torch.compile, once per shape of the rows")
    length_multiple: int = setting(
        1, "row lengths are rounded up to it, so that few shapes occur; 64 or 128 with compile"
    )
    warmup: float = setting(0.03, "warm-up: fraction of the steps if below 1, else a number of steps")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = setting(
        "cosine", "learning-rate schedule; constant has no warm-up"
    )
    weight_decay: float = setting(0.0, "AdamW weight decay; never on norms, biases and the temperature")
    adam_beta2: float = setting(0.999, "second AdamW beta")
    max_grad_norm: float = setting(1.0, "clip the gradient norm; 0 = no clipping")
    seed: int = setting(0, "seed of heads, LoRA and dropout")
    deterministic: bool = setting(False, "only deterministic kernels (slower on a GPU)")
    save_steps: int = setting(500, "steps between checkpoints; 0 = only at the end")
    save_total_limit: int | None = setting(3, "checkpoints kept (the best one is always kept); null = all")
    eval_steps: int = setting(0, "steps between validations; 0 = only at the end of training")
    best_metric: str | None = setting(None, "validation metric of the best checkpoint, e.g. eval_loss")
    best_is_greater: bool = setting(False, "whether a greater best_metric is better")
    resume: str = setting(
        "auto", "auto: newest complete checkpoint of output_dir; none: a new run folder; or one checkpoint"
    )
    preempt_exit_code: int = setting(0, "exit status after SIGTERM or SIGUSR1, when the run was saved and can go on")
    timeout_minutes: float = setting(30.0, "longest wait of a rank for the others; then the late ones are named")
    on_nonfinite: Literal["raise", "skip"] = setting(
        "raise", "a step whose loss or gradient norm is not finite: end the run, or leave the update out and go on"
    )
    max_nonfinite_skips: int = setting(10, "with on_nonfinite=skip: steps left out before the run ends, per start")
    grouping: Literal["none", "length", "modality"] = setting(
        "none", "batches of similar length; modality: also text-only and image samples in separate batches"
    )
    num_workers: int = setting(0, "data loader workers per rank")
    cache_vision_features: bool = setting(False, "store features of the frozen vision tower once and train from them")
    cache_text_states: bool = setting(True, "if decoder and embeddings are frozen, compute caption states once")
    cache_dir: str | None = setting(None, "folder of the feature caches; None = output_dir/cache")
    text_cache: str | None = setting(
        None, "folder of text states made by data_prep/cache_text.py for a frozen decoder; None = cache_text_states"
    )

    @property
    def contrastive_batch_size(self) -> int:
        """Samples per rank in one contrastive batch."""
        return self.per_device_batch_size * (self.gradient_accumulation_steps if self.grad_cache else 1)

    @property
    def chunk_size(self) -> int:
        """Samples per rank that run at once: what memory is taken for."""
        return self.grad_cache_chunk or self.per_device_batch_size

    @property
    def chunks_per_step(self) -> int:
        """Forward and backward calls of a step."""
        return -(-self.per_device_batch_size // self.chunk_size) * self.gradient_accumulation_steps


@dataclass
class LogConfig:
    steps: int = setting(10, "steps between log lines")
    peak_tflops: float | None = setting(
        None, "peak TFLOP/s of a rank's device, for mfu and hfu; None = of a known GPU in bf16, else neither is logged"
    )
    wandb: bool = setting(False, "also report to Weights & Biases")
    run_name: str | None = setting(None, "name shown by the loggers; None = output_dir")
    sample_steps: int = setting(0, "steps between generated captions of fixed images; 0 = never")
    sample_count: int = setting(4, "how many fixed images (the first of the validation, else training records)")
    sample_max_new_tokens: int = setting(32, "longest generated sample")
    diagnostic_steps: int = setting(0, "steps between modality gap and margins of fixed records; 0 = never")
    diagnostic_count: int = setting(
        32, "how many fixed records (the first usable ones of the validation, else training)"
    )


@dataclass
class Config:
    model: ModelConfig = setting(ModelConfig, "the checkpoint and what trains in it")
    data: DataConfig = setting(DataConfig, "records and templates")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "losses")
    train: TrainConfig = setting(TrainConfig, "optimisation, parallelism, checkpoints")
    log: LogConfig = setting(LogConfig, "metrics and samples")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read, merge, check; returns the resolved Config. Raises ConfigError or FileNotFoundError."""
    given = read_yaml(path) if path is not None else {}
    given = merge(given, parse_overrides(overrides))
    where = str(path) if path is not None else "command line"
    chosen = from_dict(Config, given, where=where).model.preset
    config = from_dict(Config, merge(PRESETS[chosen], given), where=where)
    validate(config, where)
    return config


def validate(config: Config, where: str = "configuration") -> None:
    """Refuse (ConfigError) combinations that could only be ignored or fail later; see `hacl.config_rules`."""
    problem = broken_rule(config)
    if problem is not None:
        raise ConfigError(f"{where}: {problem}")


def to_dict(config: Config) -> dict:
    """Plain nested dictionaries, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration; `load_config` on the file gives an equal Config."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
