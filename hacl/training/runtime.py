"""Process set-up: one process without a launcher, torchrun or the deepspeed launcher; DeepSpeed and Trainer arguments.

Everything here happens before a model exists: under ZeRO-3 the arguments must be built first, because `from_pretrained`
asks them whether to shard.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from hacl.config import Config, ConfigError, TrainConfig

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Ranks of this job, from what the launcher set; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_device():
    """The device of this rank: its GPU, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def join_group(timeout_minutes: float = 30.0) -> None:
    """Start the process group of a launched job if nothing has yet; Trainer and DeepSpeed take over an existing one."""
    import torch

    if world_size() == 1 or torch.distributed.is_initialized():
        return
    timeout = timedelta(minutes=timeout_minutes)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout)
    else:
        torch.distributed.init_process_group("gloo", timeout=timeout)


def all_ranks(value: Any) -> list[Any]:
    """What every rank passed, in rank order; also a barrier."""
    import torch

    if world_size() == 1:
        return [value]
    join_group()
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], Any], *, otherwise: type[Exception]) -> Any:
    """What `action` returns on the first rank, for all ranks (collective). Where it fails, the first rank raises its
    error and the others, which must not wait for it, `otherwise` with its message."""
    import torch

    if world_size() == 1:
        return action()
    answer: list[Any] = [None, None]
    failure = None
    if rank() == 0:
        try:
            answer[0] = action()
        except Exception as error:
            failure, answer[1] = error, str(error) or type(error).__name__
    torch.distributed.broadcast_object_list(answer, src=0)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise otherwise(answer[1])
    return answer[0]


def leave_group() -> None:
    """End the process group of a launched job, every rank together; call it last.

    A rank that exits with the group alive tears it down under its own communication threads, and one of them waiting
    for the interpreter then aborts a process whose work is done and saved.
    """
    import torch

    if world_size() > 1 and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """Exit with `status`. A rank of several leaves without the interpreter's teardown: exit functions run and output is
    flushed, but threads of the communication library are not destroyed under themselves, which can abort a rank whose
    work is done (seen with ZeRO-3 on gloo, even with the group destroyed)."""
    if world_size() == 1:
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def zero_stage(train: TrainConfig) -> int | None:
    """ZeRO stage of the run, None without DeepSpeed."""
    plan = deepspeed_config(train)
    return None if plan is None else int(plan.get("zero_optimization", {}).get("stage", 0))


def deepspeed_config(train: TrainConfig) -> dict | None:
    """The DeepSpeed dictionary for `train.deepspeed`: None, a stage number, or a JSON file (used as it is).

    "auto" values are filled by Trainer from its own arguments, so they cannot contradict them. No optimizer entry: the
    optimizer is ours (per-module learning rates), and naming one makes DeepSpeed compile a fused kernel at start.
    """
    import torch

    if train.deepspeed is None:
        return None
    if isinstance(train.deepspeed, str):
        path = Path(train.deepspeed)
        if not path.is_file():
            raise FileNotFoundError(f"train.deepspeed: no such file {path}; give a stage 0-3 or a DeepSpeed JSON file")
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"train.deepspeed: {path} is not valid JSON: {error}") from error
        if "optimizer" in plan or "scheduler" in plan:
            raise ConfigError(f"{path}: remove 'optimizer' and 'scheduler'; model.learning_rate and train.* set them")
        return plan
    stage = train.deepspeed
    zero: dict = {"stage": stage}
    if stage > 0:
        zero.update(overlap_comm=torch.cuda.is_available(), contiguous_gradients=True, reduce_bucket_size="auto")
    if stage == 3:
        zero.update(
            stage3_prefetch_bucket_size="auto",
            stage3_param_persistence_threshold="auto",
            stage3_gather_16bit_weights_on_model_save=True,
        )
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    plan = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    if not torch.cuda.is_available():
        plan["zero_force_ds_cpu_optimizer"] = False
    return plan


def prepare_process(train: TrainConfig) -> None:
    """Start the process group of several ranks; set what DeepSpeed expects of a launcher, and skip kernels that a CPU
    run does not need.

    Without a launcher DeepSpeed looks for MPI; naming this process rank 0 of 1 with a free port is the alternative.
    """
    import torch

    if train.deepspeed is None:
        join_group(train.timeout_minutes)
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"train.deepspeed={train.deepspeed} needs the package deepspeed: pip install deepspeed, or set "
            "train.deepspeed=null"
        )
    if "RANK" not in os.environ:
        defaults = dict(zip(LAUNCHER_VARIABLES, ("0", "0", "1", "127.0.0.1", str(_free_port())), strict=True))
        for name, value in defaults.items():
            os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        import deepspeed.ops

        compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
        if isinstance(compatible, dict) and "deepspeed_shm_comm" in compatible:
            compatible["deepspeed_shm_comm"] = False  # a minute of g++ for a shared-memory all-reduce gloo also has
    import deepspeed

    if not deepspeed.comm.is_initialized():  # ZeRO-3 asks for the number of ranks while the model loads
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        timeout = timedelta(minutes=train.timeout_minutes)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def training_arguments(config: Config, *, has_eval: bool):
    """TrainingArguments for a Config; with ZeRO-3, models loaded after this call are sharded while they load."""
    import torch
    from transformers import TrainingArguments

    train, log = config.train, config.log
    cuda = torch.cuda.is_available()
    if config.model.dtype == "bfloat16" and not train.bf16:
        raise ConfigError("model.dtype=bfloat16 needs train.bf16=true (trained weights are kept in fp32)")
    if log.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("log.wandb=true needs the package wandb: pip install wandb")
    every = "steps" if has_eval and train.eval_steps else "no"
    best = train.best_metric
    return TrainingArguments(
        output_dir=train.output_dir,
        run_name=log.run_name or train.output_dir,
        per_device_train_batch_size=train.chunk_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.chunks_per_step,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps if train.max_steps is not None else -1,
        learning_rate=max(vars(config.model.learning_rate).values()),
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup,
        weight_decay=train.weight_decay,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        use_cpu=not cuda,
        activation_checkpointing=train.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        seed=train.seed,
        full_determinism=train.deterministic,
        logging_steps=log.steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=["wandb"] if log.wandb else "none",  # TensorBoard and JSONL are always added, see callbacks
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or 500,
        eval_strategy=every,
        eval_steps=train.eval_steps or None,
        load_best_model_at_end=best is not None,
        metric_for_best_model=best,
        greater_is_better=train.best_is_greater if best is not None else None,
        dataloader_num_workers=train.num_workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=[],
        # A trained tower may hold layers that the selected features do not use (a classifier's norm, say).
        ddp_find_unused_parameters=config.model.learning_rate.vision > 0,
        deepspeed=deepspeed_config(train),
        ddp_timeout=max(1, round(60 * train.timeout_minutes)),
        disable_tqdm=not os.isatty(2),
    )
