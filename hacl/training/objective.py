"""The HACL objective as one module: backbone and heads, a packed batch in, losses out, one decoder call per step.

The image representation is read in place from the generation sequence: in a causal decoder the state at the last image
token depends on the tokens up to it alone, so it equals the state of the sequence "prefix, image" run by itself.
Captions and hallucinated captions are roots of their own in the same call (HACL, arXiv 2312.06968, runs four calls).

Shapes: B samples, C captions and K hallucinated captions per sample, R packed rows, T tokens, F image tokens,
D hidden size, P contrastive size, V vocabulary, Nl label tokens, S labelled sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hacl.data.collate import GENERATION, HALLUCINATED_GENERATION
from hacl.losses.gather import Gather
from hacl.losses.lm import likelihood_margin, sequence_log_likelihood
from hacl.models.adapters import Adapter, check_image_count, find_adapter
from hacl.models.attention import plain_attention
from hacl.models.heads import ContrastiveHeads
from hacl.models.reads import read_places, read_spans
from hacl.training.build import make_heads
from hacl.training.contrastive_step import (
    FEATURES,
    LABELS,
    TEXT_STATES,
    Features,
    Report,
    cached_gradients,
    contrast,
    inner_product,
    make_queue,
)
from hacl.training.grad_cache import WrittenBuffers
from hacl.training.label_loss import label_losses, liger_sum


@dataclass
class HaclOutput(ModelOutput):
    """Losses of one micro-batch on one rank.

    loss: lm_weight * lm_sum / lm_tokens + contrastive_weight * contrastive + likelihood_margin_weight * margin.
    lm_sum: summed cross-entropy of the label tokens, lm_tokens their number (so that a trainer can normalise over ranks
    and micro-batches); contrastive and margin: scalars whose mean over ranks is the loss of the union batch.
    report: name -> (sum, count) on this rank, detached; reduce both over ranks and divide.
    features: only where they, or their gradients, were asked for.
    """

    loss: Tensor | None = None
    lm_sum: Tensor | None = None
    lm_tokens: Tensor | None = None
    contrastive: Tensor | None = None
    margin: Tensor | None = None
    report: Report | None = None
    features: Features | None = None


@dataclass
class Representations:
    """Pooled states before the heads: image (B, D), captions (B, C, D), hallucinated (B, K, D)."""

    image_BD: Tensor
    caption_BCD: Tensor
    hallucinated_BKD: Tensor


def is_frozen(module: nn.Module | Sequence[nn.Module]) -> bool:
    """Whether no parameter (LoRA matrices included) is trainable."""
    modules = [module] if isinstance(module, nn.Module) else module
    return not any(parameter.requires_grad for part in modules for parameter in part.parameters())


def constant_text(model: nn.Module) -> bool:
    """Whether text states cannot change in training: embeddings and decoder have no trainable parameter.

    Decided from `requires_grad`, never from the name of a stage. The LM head is not part of a state, but a tied one is
    the embedding itself and counts.
    """
    return is_frozen(find_adapter(model).decoder)


def compose(objective, lm_mean, contrastive, margin):
    """The one formula of the loss, for tensors and numbers. lm_mean: per label token; the others as in HaclOutput."""
    return (
        objective.lm_weight * lm_mean
        + objective.contrastive_weight * contrastive
        + objective.likelihood_margin_weight * margin
    )


class HaclModel(PreTrainedModel):
    """Backbone and contrastive heads behind the interface that Trainer, DDP and DeepSpeed expect of a model.

    backbone: a stock model or a PEFT model around one; objective: an ObjectiveConfig; gather: collects features over
    ranks (`None`: one process). Frozen parts stay in eval mode in training (batch statistics and dropout included).
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # attention is the backbone's business
    accepts_loss_kwargs = True
    main_input_name = "input_ids"

    def __init__(
        self, backbone: nn.Module, objective, *, gather: Gather | None = None, heads: ContrastiveHeads | None = None
    ):
        super().__init__(backbone.config)
        self.backbone = backbone
        self.objective = objective
        self.gather = gather
        self._recompute = False
        self.adapter: Adapter = find_adapter(backbone)
        if heads is None and objective.contrastive_weight:
            heads = make_heads(self.adapter.hidden_size, objective, seed=0)
        self.heads = heads
        self.queue = None if heads is None else make_queue(objective)

    # What Trainer and DeepSpeed ask of a model

    def train(self, mode: bool = True) -> HaclModel:
        """Training mode for what trains. Frozen parts stay in eval mode: no dropout, no batch statistics.

        A frozen decoder whose activations are recomputed must be in training mode, because `transformers` recomputes
        nothing in eval mode; it has no batch statistics, and its dropout is kept off.
        """
        super().train(mode)
        for name, modules in self.adapter.groups().items():
            for module in filter(is_frozen, modules):
                recompute = mode and name == "llm" and self._recompute
                module.train(recompute)
                if recompute:
                    for part in module.modules():
                        if isinstance(part, nn.Dropout):
                            part.eval()
        return self

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Experts are the backbone's business, like attention."""
        return requested_experts or "eager"

    def get_input_embeddings(self) -> nn.Module:
        return self.adapter.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.adapter.lm_head

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **options) -> None:
        """Recompute decoder activations, never in reentrant form (hooks and several uses of weights need that)."""
        if getattr(self.adapter.decoder.config, "attention_dropout", 0.0) and is_frozen(self.adapter.decoder):
            raise ValueError("gradient checkpointing of a frozen decoder needs attention_dropout=0 in its config")
        kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        self.adapter.model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs, **options)
        self._recompute = True

    def gradient_checkpointing_disable(self) -> None:
        self.adapter.model.activation_checkpointing_disable()
        self._recompute = False

    # One step

    def forward(
        self,
        *,
        only_features: bool = False,
        window: Features | None = None,
        feature_gradients: Features | None = None,
        **batch: Tensor,
    ) -> HaclOutput:
        """batch: what `PackedCollator` returns. Every rank runs the same modules whatever its batch holds.

        The rest is for `hacl.training.grad_cache`. only_features: stop at the features after the heads. window: no
        batch, but the features of several; their contrastive loss is taken back to them, and the gradients are returned
        as features. feature_gradients: such gradients, instead of a contrastive loss of this batch alone.
        """
        if window is not None:
            gradients, report = cached_gradients(window, self.heads.log_inverse_temperature(), self.contrast)
            return HaclOutput(features=gradients, report=report)
        states_RTD, read_states_RTD = self.encode(batch)
        if only_features:
            return HaclOutput(features=self.features(self.read(read_states_RTD, batch), batch))
        report: Report = {}
        if "shared_tokens" in batch:
            saved = batch["shared_tokens"]
            report["shared_token_share"] = (saved, saved + (batch["segment_ids"] > 0).sum())
        lm_sum, lm_tokens, margin = self._generation(states_RTD, batch, report)
        objective = self.objective
        contrastive = lm_sum.new_zeros(())
        if objective.contrastive_weight:
            features = self.features(self.read(read_states_RTD, batch), batch)
            scale = self.heads.log_inverse_temperature()
            if feature_gradients is None:
                contrastive, details = self.contrast(features, scale)
                report.update(details)
            else:
                contrastive = inner_product(features, scale, feature_gradients)
        loss = compose(objective, lm_sum / lm_tokens.clamp_min(1), contrastive, margin)
        return HaclOutput(
            loss=loss, lm_sum=lm_sum, lm_tokens=lm_tokens, contrastive=contrastive, margin=margin, report=report
        )

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Packed batch -> states after the final norm and states to read representations from, both (R, T, D)."""
        adapter = self.adapter
        if "image_features" in batch:
            image_FW = adapter.project(batch["image_features"]).flatten(0, 1)
        else:
            buffers = WrittenBuffers(adapter.vision_tower)
            image_FW = adapter.image_embeddings(adapter.image_inputs(batch))
            buffers.restore(where=(batch["image_source"] < 0).all())  # a blank image moves no running statistics
        check_image_count(written=len(batch["image_tokens"]), produced=len(image_FW))
        return adapter.decode_batch(batch, image_FW, self.objective.layer)

    def read(self, states_RTD: Tensor, batch: dict[str, Tensor]) -> Representations:
        """Pooled image, caption and hallucinated-caption states; constant text is detached or comes from the batch."""
        image_BD = read_spans(states_RTD, batch["image_read"])
        if "caption_states" in batch:
            texts = [batch[name].to(states_RTD.dtype) for name in ("caption_states", "hallucinated_states")]
        else:
            source = states_RTD.detach() if is_frozen(self.adapter.decoder) else states_RTD
            texts = [
                read_places(source, batch[f"{name}_read"], batch[f"{name}_places"])
                if f"{name}_places" in batch
                else read_spans(source, batch[f"{name}_read"])
                for name in ("caption", "hallucinated")
            ]
        return Representations(image_BD, *texts)

    def _generation(
        self, states_RTD: Tensor, batch: dict[str, Tensor], report: Report
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Summed label cross-entropy, number of labels, likelihood margin. The head sees label positions only."""
        rows, columns = batch["label_read"].unbind(-1)
        states_NlD, target_Nl, head = states_RTD[rows, columns], batch["label_target"], self.adapter.lm_head
        sequence_Nl, kind_S = batch["label_sequence"], batch["sequence_kind"]
        is_generation_Nl = kind_S[sequence_Nl] == GENERATION
        lm_tokens = is_generation_Nl.sum()
        if self.objective.lm_loss == "liger":  # has no losses of single tokens; a rule keeps the margin away
            lm_sum = liger_sum(states_NlD, target_Nl, head)
        else:
            losses_Nl = label_losses(states_NlD, target_Nl, head, self.objective.lm_loss)
            lm_sum = (losses_Nl * is_generation_Nl).sum()
        report["lm"] = (lm_sum.detach(), lm_tokens)
        if not self.objective.likelihood_margin_weight:
            return lm_sum, lm_tokens, lm_sum.new_zeros(())
        log_likelihood_S = sequence_log_likelihood(losses_Nl, sequence_Nl, len(kind_S))
        margin = self._likelihood_margin(log_likelihood_S, batch, report)
        return lm_sum, lm_tokens, margin

    def _likelihood_margin(self, log_likelihood_S: Tensor, batch: dict[str, Tensor], report: Report) -> Tensor:
        kind_S, owner_S = batch["sequence_kind"], batch["sequence_sample"]
        true_s = (kind_S == GENERATION).nonzero().squeeze(-1)
        false_s = (kind_S == HALLUCINATED_GENERATION).nonzero().squeeze(-1)
        generation_of_B = torch.full_like(batch["sample_index"], -1)
        generation_of_B[owner_S[true_s]] = true_s
        pair_true = generation_of_B[owner_S[false_s]]
        loss_sum, wins, pairs = likelihood_margin(
            log_likelihood_S[pair_true],
            log_likelihood_S[false_s],
            margin=self.objective.likelihood_margin,
            beta=self.objective.likelihood_margin_beta,
        )
        report["likelihood_margin"] = (loss_sum.detach(), pairs)
        report["likelihood_win_rate"] = (wins, pairs)
        total, world = pairs, 1
        if self.gather is not None:
            total, world = self.gather.sum(pairs), self.gather.world_size
        return loss_sum * world / total.clamp_min(1)

    def features(self, states: Representations, batch: dict[str, Tensor]) -> Features:
        """Features after the heads with their labels; see `hacl.training.contrastive_step`."""
        texts_BMP = self.heads.project_text(torch.cat([states.caption_BCD, states.hallucinated_BKD], dim=1))
        captions = states.caption_BCD.shape[1]
        parts = self.heads.project_image(states.image_BD), texts_BMP[:, :captions], texts_BMP[:, captions:]
        features = dict(zip(FEATURES, parts, strict=True)) | {name: batch[name] for name in LABELS}
        if self.queue is not None and self._queues_states():
            texts = states.caption_BCD, states.hallucinated_BKD
            features.update({name: text.detach() for name, text in zip(TEXT_STATES, texts, strict=True)})
        return features

    def _queues_states(self) -> bool:
        return is_frozen(self.adapter.decoder)

    def contrast(self, features: Features, log_inverse_temperature: Tensor) -> tuple[Tensor, Report]:
        """Contrastive loss and report. The queue takes part in training alone, so validation does not depend on it."""
        queue = self.queue if self.training else None
        return contrast(
            features,
            log_inverse_temperature,
            self.objective,
            gather=self.gather,
            queue=queue,
            project_text=self.heads.project_text if queue is not None and self._queues_states() else None,
        )


@torch.no_grad()
def text_states(
    model: HaclModel, roots: Sequence[Sequence[int]], *, encoder, batch_size: int = 64, device=None
) -> Tensor:
    """Pooled pre-head states of contrastive roots, (M, D) on the CPU, in the order given.

    roots: token ids of each root (`SequenceEncoder.root`). Roots are batched by length; their states equal those of a
    training step because a root sees nothing but itself. They are computed in the dtype of the weights, also for a run
    in mixed precision.
    """
    adapter, objective = model.adapter, model.objective
    device = device or next(adapter.decoder.parameters()).device
    order = sorted(range(len(roots)), key=lambda i: len(roots[i]))
    pooled: list[Tensor] = [torch.empty(0)] * len(roots)
    was_training = model.training
    model.eval()
    with plain_attention(adapter.decoder):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            tokens = max(len(roots[i]) for i in chosen)
            ids_RT = torch.full((len(chosen), tokens), encoder.eos[0], device=device)
            reads = torch.zeros(len(chosen), 3, dtype=torch.long, device=device)
            for row, i in enumerate(chosen):
                ids_RT[row, : len(roots[i])] = torch.tensor(roots[i], device=device)
                span = encoder.root_span(list(roots[i]), objective.text_pool)
                reads[row] = torch.tensor((row, *span), device=device)
            positions_RT = torch.arange(tokens, device=device).expand(len(chosen), -1)
            _, states_RTD = adapter.decode(adapter.embed(ids_RT), None, positions_RT, objective.layer)
            for i, state in zip(chosen, read_spans(states_RTD, reads).cpu(), strict=True):
                pooled[i] = state
    model.train(was_training)
    return torch.stack(pooled) if pooled else torch.empty(0, adapter.hidden_size)
