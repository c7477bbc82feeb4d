"""How far a model is from the tuned one, token by token: KL(b || a + shift) under teacher forcing on the same text.

The models' own distributions are computed once for each batch and shared by all steered variants of it, so a sweep
costs one decoder pass of the original per variant, and memory is that of a batch.

Shapes: S samples, V vocabulary, Nl label tokens of a batch.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hacl.compare.forced import ForcedBatch, ForcedReader, Side, forced_batches, sum_by_row
from hacl.compare.recovery_fraction import Fraction, closed_share, per_image
from hacl.evaluation.statistics import Table
from hacl.representations.samples import Sample
from hacl.steering import Steerer, SteeringWarning, steering
from hacl.steering.layers import LayerKey


@dataclass(frozen=True)
class Setting:
    """One variant: a steerer by name, the layers it steers (None: all of its own), positions, strength."""

    method: str
    alpha: float
    layers: tuple[LayerKey, ...] | None = None
    policy: str = "all"

    @property
    def where(self) -> str:
        """The layers in words."""
        return "own layers" if self.layers is None else "layer " + "+".join(map(str, self.layers))

    def __str__(self) -> str:
        return f"alpha = {self.alpha:g}, {self.where}, {self.policy}, {self.method}"


@dataclass(frozen=True)
class Divergence:
    """KL to the tuned model. image_ids, tokens: of each sample (S); base: summed KL(b || a) in nats (S); moved: the
    same for each setting.
    """

    image_ids: list[str]
    tokens: np.ndarray
    base: np.ndarray
    moved: dict[Setting, np.ndarray]

    def base_table(self) -> Table:
        """Evidence by image of KL(b || a) per token."""
        return per_image(self.image_ids, self.base, self.tokens)

    def table(self, setting: Setting) -> Table:
        return per_image(self.image_ids, self.moved[setting], self.tokens)

    def closed(self, setting: Setting, **settings) -> Fraction:
        """1 - KL(b || a + shift) / KL(b || a), with a paired interval over images."""
        return closed_share(self.base_table(), self.table(setting), **settings)


def divergence(
    original: Side,
    tuned: Side,
    samples: Sequence[Sample],
    texts: Sequence[str],
    steerers: Mapping[str, Steerer],
    settings: Sequence[Setting],
    *,
    batch_size: int = 16,
    progress: str = "",
) -> Divergence:
    """KL(b || a) and KL(b || a + shift) at every token of the texts, EOS included.

    Raises:
        ValueError: a setting names no steerer, or steers no position of any text.
    """
    unknown = sorted({setting.method for setting in settings} - set(steerers))
    if unknown:
        raise ValueError(f"settings name {unknown[0]!r}; there are the steerers {', '.join(sorted(steerers))}")
    batches = forced_batches(original, samples, texts, batch_size)
    base, tokens = np.zeros(len(samples)), np.zeros(len(samples))
    moved = {setting: np.zeros(len(samples)) for setting in settings}
    steered: Counter = Counter()
    with tqdm(total=len(samples) * (len(moved) + 2), desc=progress, disable=not progress, leave=False) as bar:
        for batch in batches:
            tokens[batch.rows] = np.bincount(batch.labels[:, 0].numpy(), minlength=len(batch.rows))
            with tuned.open() as device:
                reader = ForcedReader(tuned, device)
                wanted_NlV = reader.log_probs(batch, reader.embed(batch))
            with original.open() as device:
                reader = ForcedReader(original, device)
                embedded = reader.embed(batch)
                base[batch.rows] = kl_by_row(wanted_NlV, reader.log_probs(batch, embedded), batch)
                bar.update(2 * len(batch.rows))
                for setting, log_probs_NlV in _variants(reader, batch, embedded, steerers, list(moved), steered):
                    moved[setting][batch.rows] = kl_by_row(wanted_NlV, log_probs_NlV, batch)
                    bar.update(len(batch.rows))
    idle = [setting for setting in moved if setting.alpha and not steered[setting]]
    if idle:
        raise ValueError(f"{idle[0]}: no position of any text is steered; choose another policy")
    return Divergence([sample.group for sample in samples], tokens, base, moved)


def _variants(reader: ForcedReader, batch: ForcedBatch, embedded: dict, steerers, settings, steered: Counter):
    """(setting, (Nl, V) log-probabilities) of each variant; one session serves all strengths of a place.

    steered: counts positions by setting.
    """
    for (name, layers, policy), group in groupby(
        sorted(settings, key=lambda s: (s.method, str(s.layers), s.policy)), lambda s: (s.method, s.layers, s.policy)
    ):
        model, steerer = reader.side.model, steerers[name]
        with (
            quiet(),
            steering(model, steerer, layers=layers, policy=batch.policy(policy)) as session,
            session.rows(sample_ids=batch.sample_ids, prompt_lengths=batch.prompts),
        ):
            for setting in group:
                before = session.stats.total
                session.alpha = setting.alpha
                log_probs_NlV = reader.log_probs(batch, embedded)
                steered[setting] += session.stats.total - before
                yield setting, log_probs_NlV


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A batch without a steered position (no image in it) is no cause for a warning; a whole run without one is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteeringWarning)
        yield


def kl_by_row(wanted_NlV: Tensor, found_NlV: Tensor, batch: ForcedBatch) -> np.ndarray:
    """KL(wanted || found) in nats, summed over the label tokens of each row, fp64 (R)."""
    found_NlV = found_NlV.to(wanted_NlV.device)
    terms = torch.where(wanted_NlV > -torch.inf, wanted_NlV.exp() * (wanted_NlV - found_NlV), 0.0)
    return sum_by_row(terms.sum(-1).clamp_min(0.0), batch.labels[:, 0], len(batch.rows))
