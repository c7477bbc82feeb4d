"""The Trainer of this project: order of the data, loss normalisation, parameter groups, metrics and validation.

Normalisation: the LM loss is one mean over all label tokens of the accumulation window and all ranks. The contrastive
loss is not separable over micro-batches, so each micro-batch (over all ranks) is one contrastive batch of its own and
the window takes their mean; with `train.grad_cache` the window is one contrastive batch. The two are normalised
separately; neither rescales the other.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from hacl.config import Config
from hacl.data.stream_dataset import StreamDataset
from hacl.losses.gather import Gather
from hacl.models.modes import evaluating
from hacl.training import accumulation, sampler
from hacl.training.grad_cache import Window, WrittenBuffers
from hacl.training.groups import parameter_groups
from hacl.training.metrics import ReportMeter, Throughput, Utilisation, ratios
from hacl.training.objective import compose
from hacl.training.reduce_once import reduce_once
from hacl.training.skipped import SkippedSamples
from hacl.training.stopping import Stopped, end_workers, shield_worker
from hacl.training.survival import SurvivingTrainer
from hacl.training.temperature import BoundedTemperature
from hacl.training.window_records import RecordIds, take_ids

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """A batch that could not be read after training had started; the message names record and file where known."""


def _told(failure: Exception | None) -> str:
    """What this rank says of a batch that some rank could not read; errors of no known kind are logged in full."""
    if failure is None:
        return "another rank could not read its data"
    if isinstance(failure, (ValueError, OSError)):
        return str(failure)
    logger.error("a batch could not be read", exc_info=failure)
    return f"a batch could not be read: {type(failure).__name__}: {failure}"


def _read(iterator: Iterator, count: int) -> tuple[list, Exception | None]:
    """Up to `count` batches, or none and why: whatever it is, the other ranks wait to hear of it."""
    try:
        return list(itertools.islice(iterator, count)), None
    except Stopped:
        raise
    except Exception as error:
        return [], error


class HaclTrainer(SurvivingTrainer):
    """Trains a HaclModel. base and data: fingerprints of base checkpoint and records, for the manifests.

    lengths and is_text_only (one entry per training sample) serve `train.grouping`.
    """

    skipped: SkippedSamples | None = None  # of a run that may replace unreadable samples
    _caches = False
    _throughput = Throughput()
    _window: Window | None = None  # the micro-batches of the step, where `train.grad_cache` makes them one batch

    def __init__(
        self,
        model,
        config: Config,
        *,
        processor=None,
        base: str = "",
        data: str = "",
        lengths: list[int] | None = None,
        is_text_only: list[bool] | None = None,
        skipped: SkippedSamples | None = None,
        utilisation: Utilisation | None = None,
        **kwargs,
    ):
        super().__init__(model=model, config=config, base=base, data=data, **kwargs)
        self.processor = processor
        self.lengths, self.is_text_only = lengths, is_text_only
        if skipped is not None:
            self.skipped = skipped
            self.add_callback(skipped)
        if config.objective.learn_temperature:
            self.add_callback(BoundedTemperature(model.heads.temperature))
        # Losses are normalised over the window in compute_loss; Trainer must not divide them again.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self._meter = ReportMeter()
        self._throughput = Throughput(utilisation)
        self._caches = config.train.grad_cache
        asked = config.train.deepspeed is not None
        if asked != self.is_deepspeed_enabled:
            raise RuntimeError(f"train.deepspeed={config.train.deepspeed!r}, but DeepSpeed active: {not asked}")

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Global batches planned from (data.seed, epoch), shared by the ranks; see `hacl.training.sampler`. Those of a
        stream are numbered."""
        train, args = self.config.train, self.args
        if isinstance(self.train_dataset, StreamDataset):
            # Where the end of the source is unknown, the whole run is one epoch of the loader.
            known = self.train_dataset.batches_per_epoch
            parts = self.train_dataset.parts
            per_epoch = known * parts if known else args.max_steps * args.gradient_accumulation_steps
            return self._loader_of(self.train_dataset, sampler.NumberedBatches(per_epoch))
        global_batch = train.per_device_batch_size * args.world_size

        def plan(epoch: int) -> list[list[int]]:
            return sampler.plan_epoch(
                len(self.train_dataset),
                global_batch,
                seed=self.config.data.seed,
                epoch=epoch,
                accumulation=train.gradient_accumulation_steps,
                grouping=train.grouping,
                lengths=self.lengths,
                is_text_only=self.is_text_only,
            )

        return self._loader(self.train_dataset, plan, train.grad_cache_chunk)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Every validation sample once, in fixed global batches."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.per_device_eval_batch_size * self.args.world_size
        batches = sampler.plan_evaluation(len(dataset), size, self.args.world_size)
        return self._loader(dataset, lambda epoch: batches)

    def _loader(self, dataset: Dataset, plan, chunk: int | None = None) -> DataLoader:
        rank, ranks = self.args.process_index, self.args.world_size
        batches = sampler.GlobalBatchSampler(plan, rank=rank, ranks=ranks, dataset=dataset, chunk=chunk)
        return self._loader_of(dataset, batches)

    def _loader_of(self, dataset: Dataset, batches: Sampler) -> DataLoader:
        return sampler.EpochDataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=RecordIds(self.data_collator),
            worker_init_fn=shield_worker,
            generator=torch.Generator(),  # or every pass over data would draw from the generator that dropout uses
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    # Loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """Micro-batches of one step, as many on every rank, and the label tokens of all of them on all ranks
        (collective).

        Raises DataError on every rank when one cannot read its data, so that all can save together.
        """
        self._iterator = epoch_iterator
        self.beat("reading data")
        with self._throughput.waiting():
            batches, failure = _read(epoch_iterator, num_batches)
        records = take_ids(batches)
        gather = Gather(alone=self.args.world_size == 1)
        skipped = () if self.skipped is None else self.skipped.take(batches)
        mine = len(batches), accumulation.label_tokens(batches), *skipped
        counts, labels, *skips = self._heard(failure, *mine, device=device)
        if skips and (problem := self.skipped.add([sum(ranks) for ranks in skips])):
            raise DataError(problem)
        batches = accumulation.fill(batches, max(counts), lambda: self.data_collator([]))
        if self.config.objective.likelihood_margin_weight:
            accumulation.add_pair_counts(batches, gather, device)
        self._window = Window(self.model, batches) if self._caches else None
        self.begin_step(records)
        return batches, torch.tensor(sum(labels), device=device)

    def _heard(self, failure: Exception | None, *numbers: int, device: torch.device) -> list[tuple[int, ...]]:
        """`numbers` of every rank, number by number (collective). failure: what kept this rank from reading.

        Raises on every rank Stopped where one was asked to stop, else DataError where one could not read.
        """
        mine = (int(failure is not None), int(self.stop.received is not None), *numbers)
        said = Gather(alone=self.args.world_size == 1).agree(*mine, device=device)
        failures, asked, *others = zip(*said, strict=True)
        if any(asked):
            self.raise_stopped()
        if any(failures):
            raise DataError(_told(failure)) from failure
        return others

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Tensor | None = None) -> Tensor:
        """As Trainer; with `train.grad_cache` the first micro-batch of a window opens it, after any restored RNG."""
        if self._window is not None and not self._window.is_open:
            with self.compute_loss_context_manager():
                report = self._window.open(self._prepare_inputs)
            self._meter.add(report)
            for name in sorted({"contrastive", "i2t", "t2i"} & set(report)):
                self.guard.note(report[name][0], is_of_window=True)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        """Loss of one micro-batch; its sum over the window, averaged over ranks, is the loss of the step."""
        objective = self.config.objective
        is_cached = self._window is not None and num_items_in_batch is not None
        outputs = model(**inputs, feature_gradients=self._window.take()) if is_cached else model(**inputs)
        labels = outputs.lm_tokens if num_items_in_batch is None else num_items_in_batch
        ranks = 1 if num_items_in_batch is None else self.args.world_size
        lm_mean = outputs.lm_sum * ranks / labels.clamp_min(1)
        window = self.current_gradient_accumulation_steps
        share = accumulation.pair_share(inputs)
        margin = outputs.margin * (1 / window if share is None else share.to(outputs.margin.dtype))
        loss = compose(objective, lm_mean, outputs.contrastive / window, margin)
        self._meter.add(outputs.report)
        if objective.contrastive_weight:
            self._meter.add({"contrastive": (outputs.contrastive, torch.ones_like(outputs.contrastive))})
        self._throughput.add(inputs)
        if num_items_in_batch is not None:
            self.note_loss(loss)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one learning rate per module."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.model, self.config.model.learning_rate, self.args.weight_decay),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                fused=self.args.device.type == "cuda" and not self.is_deepspeed_enabled,
            )
        return self.optimizer

    # Survival

    def keep_state(self) -> dict:
        """Queue, buffers that the forward passes write, and running sums, before a step that may be skipped."""
        self.model.train()  # as the step will: what trains decides which buffers it writes
        queue = getattr(self.model, "queue", None)
        held = None if queue is None else {name: value.clone() for name, value in queue.state_dict().items()}
        return {"queue": held, "buffers": WrittenBuffers(self.model), "meter": copy.deepcopy(self._meter)}

    def bring_back(self, state: dict) -> None:
        if state.get("queue") is not None:
            self.model.queue.load_state_dict(state["queue"], self.args.device)
        if "buffers" in state:
            state["buffers"].restore()
        self._meter = state["meter"]

    def running_sums(self) -> dict:
        return super().running_sums() | {"terms": self._meter.state()}

    def bring_back_sums(self, sums: dict) -> None:
        super().bring_back_sums(sums)
        self._meter.load(sums["terms"], self.args.device)

    def _prepare_for_training(self, max_steps: int, train_dataloader, resume_from_checkpoint):
        """As SurvivingTrainer; the clock of the first log line starts after it."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.config.train.reduce_once:
            reduce_once(self.accelerator)
        self._throughput.clear()
        return prepared

    # Metrics

    def paused(self):
        """Context whose time counts as no training: validation, saving, sampling."""
        return self._throughput.paused()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Training lines also get every loss term, similarities, temperature, rates, throughput and memory."""
        if "loss" in logs:
            logs.pop("learning_rate", None)
            logs.update(ratios(self._meter.reduce()))
            logs.update(self._throughput.reduce())
            logs.update(self.skipped.metrics() if self.skipped is not None else {})
            logs.update({f"learning_rate/{name}": rate for name, rate in self._rates().items()})
        super().log(logs, start_time)

    def _rates(self) -> dict[str, float]:
        """Learning rate of each module as of the last step."""
        names = [group["name"].split("/")[0] for group in self.optimizer.param_groups]
        return {name: float(rate) for name, rate in zip(names, self.lr_scheduler.get_last_lr(), strict=True)}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Validation losses over all samples and ranks: `<prefix>_loss` is the training objective on them."""
        with self.paused():
            return self._evaluate_all(eval_dataset, metric_key_prefix)

    @contextlib.contextmanager
    def _validating(self, meter: ReportMeter) -> Iterator[None]:
        """The model in evaluation mode, and its reports into `meter`; afterwards as before, even if stopped."""
        meters = self._meter, self._throughput
        self._meter, self._throughput = meter, Throughput()
        self.current_gradient_accumulation_steps = 1
        try:
            with evaluating(self.model_wrapped):
                yield
        finally:
            self._meter, self._throughput = meters

    def _validation_batches(self, eval_dataset) -> Iterator[dict]:
        """Batches of this rank (collective: as many on every rank). Raises as `get_batch_samples`."""
        iterator = iter(self.get_eval_dataloader(eval_dataset))
        try:
            while True:
                self.beat("validation")
                batches, failure = _read(iterator, 1)
                take_ids(batches)
                self._heard(failure, device=self.args.device)
                if not batches:
                    return
                yield batches[0]
        finally:
            end_workers(iterator)

    def _evaluate_all(self, eval_dataset, metric_key_prefix: str) -> dict[str, float]:
        objective = self.config.objective
        meter = ReportMeter()
        with self._validating(meter), contextlib.closing(self._validation_batches(eval_dataset)) as batches:
            for batch in batches:
                with self.compute_loss_context_manager():
                    self.compute_loss(self.model_wrapped, self._prepare_inputs(batch))
        values = ratios(meter.reduce())
        total = compose(objective, *(values.get(name, 0.0) for name in ("lm", "contrastive", "likelihood_margin")))
        metrics = {f"{metric_key_prefix}_loss": total}
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        best = self.args.metric_for_best_model
        if best is not None and f"{metric_key_prefix}_{best.removeprefix('eval_')}" not in metrics:
            raise ValueError(f"train.best_metric={best} was not measured; these were: {', '.join(sorted(metrics))}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
