"""What a shift at the final norm is: one addition to the logits, the same at every position.

logits(h + alpha * Delta) - logits(h) = alpha * W_U Delta exactly, whatever the context: a tilt of the vocabulary. A
recovery that such a shift gives says that the tuned model prefers other words, not that it looks at other things.

Shapes: V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LogitBias:
    """bias_V: the addition to each logit; up, down: (token, addition) of the most raised and the most lowered ones."""

    bias_V: np.ndarray
    up: list[tuple[str, float]]
    down: list[tuple[str, float]]

    def __str__(self) -> str:
        sides = (" ".join(f"{word} {value:+.2f}" for word, value in side) for side in (self.up, self.down))
        return "raised: {}; lowered: {}".format(*sides)


def final_norm_bias(
    lm_head_VD: np.ndarray, shift_D: np.ndarray, tokens: Sequence[str], *, count: int = 15, alpha: float = 1.0
) -> LogitBias:
    """The bias alpha * W_U Delta of a shift after the final norm. lm_head_VD, tokens: see `Readout`.

    Raises:
        ValueError: widths or numbers of tokens that do not fit.
    """
    if lm_head_VD.shape[1:] != np.shape(shift_D) or len(tokens) != len(lm_head_VD):
        raise ValueError(
            f"lm_head {lm_head_VD.shape}, shift {np.shape(shift_D)}, {len(tokens)} tokens: they belong to other models"
        )
    bias_V = alpha * (lm_head_VD.astype(np.float64) @ np.asarray(shift_D, dtype=np.float64))
    order = np.argsort(-bias_V, kind="stable")
    pick = [[(tokens[i], float(bias_V[i])) for i in rows] for rows in (order[:count], order[::-1][:count])]
    return LogitBias(bias_V, *pick)
