"""Compute the pooled states of every caption and hallucinated caption of some files, once, for frozen-LLM training.

With decoder and embeddings frozen the states of texts are constants (K more hallucinated captions then cost nothing in
training). The files are streamed: memory holds one batch and one shard, and 24 to 48 bytes per text. Of several ranks
each computes the texts whose hash falls to it, so none is computed twice, and writes shards of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hacl.config import Config, ConfigError
from hacl.data.hashes import HashSet, hash64
from hacl.data.parallel import chunked
from hacl.data.sources import Source
from hacl.data.templates import SequenceEncoder
from hacl.data.text_cache import TextCache, open_for_writing, text_key, write_shard
from hacl.training import build, caches, manifest, runtime
from hacl.training.objective import HaclModel, constant_text, text_states

SHARD_BYTES = 128 * 2**20
LOOK_AHEAD = 4096  # texts that are sorted by length together


@dataclass
class CachingReport:
    """texts: different ones in the files; kept: those that were there; computed; bytes: of all rows."""

    texts: int = 0
    kept: int = 0
    computed: int = 0
    bytes: int = 0


def text_meta(folder: Path, config: Config, encoder: SequenceEncoder, model: HaclModel) -> dict[str, Any]:
    """All that decides the state of a text: weights, decoder, tokenizer, form of a root, layer, pooling, dtype."""
    return {
        "kind": "pooled text states before the heads",
        "weights": manifest.fingerprint(folder, caches.last_names([model.adapter.DECODER])),
        "decoder": caches.config_digest(model.adapter.decoder.config),
        "tokenizer": caches.digest(encoder.tokenizer.backend_tokenizer.to_str()),
        "template": [encoder.bos, "text", encoder.eos, encoder.max_caption_length],
        "layer": config.objective.layer,
        "pool": config.objective.text_pool,
        "dtype": str(next(model.adapter.decoder.parameters()).dtype).removeprefix("torch."),
        "width": model.adapter.hidden_size,
    }


def cache_texts(
    config: Config, folder: Path, *, batch: int = 64, progress: Callable[[Iterable], Iterable] | None = None
) -> CachingReport:
    """Fill the cache in `folder` with the texts of data.path and data.eval_path; what is there is not computed again.

    Raises ConfigError where the states of this configuration are no constants, StaleCacheError where the folder was
    made with something else. Every rank of a launched job calls this and gets the report of all.
    """
    from hacl.models.adapters import find_adapter

    paths = [*config.data.path, *config.data.eval_path]
    if not paths:
        raise ConfigError("data.path is empty: name the records whose texts to cache")
    backbone = build.select_trainable(build.load_backbone(config.model), config.model, masters=False)
    if not constant_text(backbone):
        raise ConfigError(
            "model.learning_rate.llm > 0 trains the decoder, so states of texts change from step to step; cache them "
            "only for a frozen decoder without LoRA"
        )
    device = runtime.local_device()
    heads = build.build_heads(find_adapter(backbone), config.objective, seed=0, trainable=False)
    model = HaclModel(backbone, config.objective, heads=heads).to(device).eval()
    encoder = build.build_encoder(build.load_processor(config.model), config.data)
    base = manifest.model_folder(config.model.path, config.model.revision)
    cache = _open_together(folder, text_meta(base, config, encoder, model))
    report = CachingReport(texts=0, kept=0)
    rows, roots, size = [], [], 0
    texts = _my_texts(build.open_data(paths))
    for chunk in chunked(texts if progress is None else progress(texts), LOOK_AHEAD):
        report.texts += len(chunk)
        ids = list({text_key(root): root for root in map(encoder.root, chunk)}.values())
        there = cache.holds(ids)
        report.kept += sum(there)
        missing = sorted((root for root, held in zip(ids, there, strict=True) if not held), key=len)
        for part in chunked(missing, batch):
            states = text_states(model, part, encoder=encoder, batch_size=batch, device=device).to(cache.dtype)
            rows.append(states)
            roots += part
            size += states.numel() * states.element_size()
            report.computed += len(part)
            if size >= SHARD_BYTES:
                write_shard(folder, roots, torch.cat(rows))
                rows, roots, size = [], [], 0
    if roots:
        write_shard(folder, roots, torch.cat(rows))
    parts = runtime.all_ranks(report)  # which also waits for their last shards
    report = CachingReport(*(sum(getattr(part, name) for part in parts) for name in ("texts", "kept", "computed")))
    cache.refresh()
    report.bytes = len(cache) * cache.width * torch.empty(0, dtype=cache.dtype).element_size()
    return report


def open_text_cache(config: Config, inputs, model: HaclModel) -> TextCache:
    """The cache that train.text_cache names, for this model and template.

    Raises ConfigError where the decoder trains, StaleCacheError, and ValueError where a text of the first records is
    not in it.
    """
    if not config.objective.contrastive_weight:
        raise ConfigError("train.text_cache is set, but objective.contrastive_weight=0 reads no states of texts")
    if not constant_text(model.backbone):
        raise ConfigError("train.text_cache is set, but the decoder trains (model.learning_rate.llm, model.lora)")
    base = manifest.model_folder(config.model.path, config.model.revision)
    cache = TextCache(Path(config.train.text_cache), text_meta(base, config, inputs.encoder, model))
    for records in (inputs.records, inputs.eval_records):
        for record in records[:100]:
            if len(record.images) == 1 and record.captions:
                cache.lookup([inputs.encoder.root(text) for text in record.captions])
    return cache


def _open_together(folder: Path, meta: dict[str, Any]) -> TextCache:
    """Rank 0 begins the folder and clears it of unfinished shards before the others open it; they share its errors."""
    failure = None
    if runtime.rank() == 0:
        try:
            open_for_writing(folder, meta)
        except (ValueError, OSError) as error:
            failure = error
    if (failure := runtime.all_ranks(failure)[0]) is not None:
        raise failure
    cache = TextCache(folder, meta)
    runtime.all_ranks(None)  # none adds a shard before all have seen which were there
    return cache


def _my_texts(source: Source) -> Iterator[str]:
    """Each different caption and hallucinated caption that falls to this rank, in the order of the source."""
    seen = HashSet()
    for record in source.records():
        for text in (*record.captions, *(edit.text for edit in record.hallucinated)):
            key = hash64(text)
            if key % runtime.world_size() == runtime.rank() and seen.add(key):
                yield text
