"""Log-likelihood of short texts under a local causal language model, in batches of similar length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _open(path: Path) -> tuple[Any, Any, str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json; give the folder of a causal language model")
    identity = f"{path.name} {hashlib.sha256((path / 'config.json').read_bytes()).hexdigest()[:12]}"
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True), identity


class TextScorer:
    """folder: a causal LM with its tokenizer, as transformers saves them; nothing is downloaded. loaded: the two
    themselves instead, of which `folder` then is the name."""

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str | None = None,
        batch_size: int = 64,
        loaded: tuple[Any, Any] | None = None,
    ):
        import torch

        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        if loaded is None:
            model, self.tokenizer, self.identity = _open(Path(folder))
        else:
            (model, self.tokenizer), self.identity = loaded, str(folder)
        self.model = model.to(self.device).eval()

    def log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Summed log p of each text after the beginning of text, in nats."""
        import torch

        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        ids = [[start, *self.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        scores = [0.0] * len(ids)
        with torch.inference_mode():
            for at in range(0, len(order), self.batch_size):
                rows = order[at : at + self.batch_size]
                longest = max(len(ids[row]) for row in rows)
                batch = torch.full((len(rows), longest), start)
                mask = torch.zeros((len(rows), longest), dtype=torch.long)
                for i, row in enumerate(rows):
                    batch[i, : len(ids[row])] = torch.tensor(ids[row])
                    mask[i, : len(ids[row])] = 1
                batch, mask = batch.to(self.device), mask.to(self.device)
                logits = self.model(input_ids=batch, attention_mask=mask).logits[:, :-1].float()
                chosen = logits.gather(-1, batch[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
                for row, score in zip(rows, (chosen * mask[:, 1:]).sum(-1).tolist(), strict=True):
                    scores[row] = score
        return scores
