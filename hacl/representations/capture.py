"""Capture the hidden states of chosen layers at chosen positions into a feature store.

After Khayatan et al., arXiv 2501.03012 (github.com/mshukor/xl-vlms@a599fe9), which captures while the model generates;
here both models of a comparison read the same text by default, so that a difference of states is one of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from hacl.models.identity import versions
from hacl.models.modes import evaluating
from hacl.representations.batches import BatchReader, missing
from hacl.representations.checks import check_ids, check_same, check_size, prefix_digest
from hacl.representations.encoding import RowEncoder
from hacl.representations.forward import Stats
from hacl.representations.free import generate_answers
from hacl.representations.manifest import read_json, write_json
from hacl.representations.model_identity import adapter_switched, describe_model
from hacl.representations.parts import Parts, find_parts
from hacl.representations.readout import save_readout
from hacl.representations.samples import Sample
from hacl.representations.settings import ADAPTERS, Settings
from hacl.representations.shards import merge_shards, merged_state, remove_shards, shard_folder, shard_of
from hacl.representations.store import StoreWriter

ANSWERS = "answers.json"


class Ranks(Protocol):
    """Several processes that capture together (`hacl.evaluation.runner.ranks.Ranks`)."""

    rank: int
    world: int

    def wait(self) -> None: ...


class _Alone:
    rank, world = 0, 1

    def wait(self) -> None:
        return


def capture(
    model: nn.Module,
    processor,
    samples: Sequence[Sample],
    *,
    layers: Sequence[int | str] | int | str,
    select: str | Sequence[str],
    out: Path | str,
    mode: str = "teacher_forced",
    answer: str | Mapping[str, str] = "reference",
    adapter: str = "on",
    template: str = "plain",
    batch_size: int = 16,
    max_new_tokens: int = 64,
    occurrences: str = "all",
    classes: Mapping[str, Sequence[str]] | None = None,
    dtype: str | None = None,
    fingerprint: str | None = None,
    part_bytes: int = 256 << 20,
    max_bytes: int = 32 << 30,
    resume: bool = True,
    ranks: Ranks | None = None,
    progress: bool = True,
    stats: Stats | None = None,
) -> Path:
    """Write the states of `samples` to the store `out`; returns `out`.

    processor: of the model; a tokenizer for text-only models; or a `RowEncoder`.
    layers: see `Parts.resolve`; select: see `hacl.representations.selectors`.
    mode: "teacher_forced" reads prompt and answer in one pass; "free" lets the model write (greedy, `max_new_tokens`).
    answer: the text of teacher forcing: "reference" (each sample's own), "original" or "tuned" (what the model writes
        with its adapter off or on), or {sample id: text}, for example from `generate_answers` of another model.
    adapter: of a PEFT model: "on", "off", or "both": two stores, out/adapter_off and out/adapter_on, from one load.
    occurrences: "all" or "first" of a word; classes: words of `@CLASS` beside the built-in ones.
    dtype: of the stored features (default: the model's); fingerprint: of the checkpoint, where its folder is unknown.
    part_bytes: features kept in memory before a commit; max_bytes: refuse a larger store.
    resume: go on where an interrupted capture of the same configuration stopped, or append further samples.
    ranks: each captures its share; the first merges them in the order of `samples`. stats: counts, added to.

    Raises:
        ValueError: wrong arguments, a store of another configuration at `out`, an answer missing, or too large a store.
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter={adapter!r}: expected one of {', '.join(ADAPTERS)}")
    settings = Settings(
        select, mode, occurrences, classes, batch_size, max_new_tokens, part_bytes=part_bytes, max_bytes=max_bytes
    )
    encoder = processor if isinstance(processor, RowEncoder) else RowEncoder(processor, template=template)
    job = _Job(model, encoder, settings, layers, dtype, fingerprint, resume, ranks or _Alone(), progress, stats)
    out = Path(out)
    check_ids(samples)
    samples = job.answered(samples, answer, out)
    if adapter == "both":
        for state in ("off", "on"):
            job.run(samples, answer, state, out / f"adapter_{state}")
    else:
        job.run(samples, answer, adapter, out)
    return out


class _Job:
    """One call of `capture`."""

    def __init__(self, model, encoder, settings, layers, dtype, fingerprint, resume, ranks, progress, stats):
        self.model, self.encoder, self.settings = model, encoder, settings
        self.parts: Parts = find_parts(model)
        self.layers = self.parts.resolve(layers)
        self.dtype = _dtype(dtype, model.dtype)
        self.fingerprint, self.resume, self.ranks, self.progress = fingerprint, resume, ranks, progress
        self.stats = Stats() if stats is None else stats
        settings.selectors()

    def answered(self, samples: Sequence[Sample], answer: str | Mapping[str, str], out: Path) -> list[Sample]:
        """Samples with the text that both models read."""
        if self.settings.mode == "free" or answer == "reference":
            return list(samples)
        texts = answer
        if isinstance(answer, str):
            if answer not in ("original", "tuned"):
                raise ValueError(f"answer={answer!r}: expected 'reference', 'original', 'tuned' or {{sample id: text}}")
            texts = self._written(samples, answer, out)
        lacking = [sample.id for sample in samples if sample.id not in texts]
        if lacking:
            raise ValueError(f"answer: no text for {len(lacking)} samples, the first {lacking[0]!r}")
        return [replace(sample, answer=texts[sample.id]) for sample in samples]

    def _written(self, samples: Sequence[Sample], answer: str, out: Path) -> dict[str, str]:
        """What the model writes, kept in the folder so that a resumed capture does not ask again."""
        path, key = out / ANSWERS, f"{answer}/{self.settings.max_new_tokens}"
        known = read_json(path).get(key, {}) if path.is_file() else {}
        asked = [sample for sample in samples if sample.id not in known]
        if asked and self.ranks.rank == 0:
            with adapter_switched(self.model, "off" if answer == "original" else "on"):
                known |= generate_answers(
                    self.model,
                    self.encoder,
                    asked,
                    batch_size=self.settings.batch_size,
                    max_new_tokens=self.settings.max_new_tokens,
                    progress=self.progress,
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {key: known})
        self.ranks.wait()
        return read_json(path)[key]

    def run(self, samples: Sequence[Sample], answer: str | Mapping[str, str], adapter: str, out: Path) -> None:
        """Capture one store, this rank's share of it, and merge the shares."""
        with adapter_switched(self.model, adapter), evaluating(self.model):
            config = self.config(adapter, answer)
            reader = BatchReader(
                self.model, self.parts, self.encoder, self.settings, self.layers, self.dtype, stats=Stats()
            )
            check_size(samples, reader, self.settings.max_bytes, out)
            if self.ranks.world == 1:
                read_into(self._writer(out, config, readout=True), reader, samples, progress=self.progress)
            else:
                self._run_ranks(samples, reader, config, out)
            self.stats.merge(reader.stats)

    def _run_ranks(self, samples: Sequence[Sample], reader: BatchReader, config: dict[str, Any], out: Path) -> None:
        """This rank's share of what the merged store does not hold, then the merge."""
        rank, world = self.ranks.rank, self.ranks.world
        state = merged_state(out)
        before = state.get("samples", 0)
        check_same(out, samples, state)
        self.ranks.wait()
        if before < len(samples):
            own = shard_of(samples[before:], rank, world, self.settings.window)
            writer = self._writer(shard_folder(out, rank, world), config)
            read_into(writer, reader, own, progress=self.progress and rank == 0)
        self.ranks.wait()
        if rank == 0:
            merged = self._writer(out, config, readout=True)
            if before < len(samples):
                merge_shards(merged, world, prefix_digest(samples).hexdigest(), before)
            else:
                merged.finish(samples=before, missing=merged.state["missing"])
            remove_shards(out)
        self.ranks.wait()

    def _writer(self, folder: Path, config: dict[str, Any], *, readout: bool = False) -> StoreWriter:
        writer = StoreWriter(folder, config, self.layers, part_bytes=self.settings.part_bytes, resume=self.resume)
        if readout:
            save_readout(folder, self.parts, self.encoder.tokenizer)
        return writer

    def config(self, adapter: str, answer: str | Mapping[str, str]) -> dict[str, Any]:
        """What the manifest says of this capture."""
        return {
            "kind": "capture",
            "model": describe_model(self.model, adapter, self.fingerprint),
            "compute_dtype": str(self.model.dtype).removeprefix("torch."),
            "dtype": str(self.dtype).removeprefix("torch."),
            "tokenizer_hash": self.encoder.tokenizer_hash(),
            "template": self.encoder.template,
            "template_hash": self.encoder.template_hash(),
            **self._texts(answer),
            "layers": self.layers,
            "num_layers": len(self.parts.blocks),
            "hidden_size": self.parts.hidden_size,
            **self.settings.describe(),
            "versions": versions(),
        }

    def _texts(self, answer: str | Mapping[str, str]) -> dict[str, Any]:
        """Where the answers come from, and how they were written where the model wrote them."""
        free = self.settings.mode == "free"
        source = "own" if free else answer if isinstance(answer, str) else "given"
        greedy = {"do_sample": False, "max_new_tokens": self.settings.max_new_tokens}
        return {"answer": source, "decoding": None if source in ("reference", "given") else greedy, "seed": None}


def read_into(
    writer: StoreWriter,
    reader: BatchReader,
    samples: Sequence[Sample],
    *,
    progress: bool = True,
    after_commit: Callable[[], None] | None = None,
) -> None:
    """Read the samples that the store does not hold yet, window by window, and finish it.

    after_commit: called after each commit (a hook for schedulers that preempt). Raises ValueError where the store was
    made from other samples.
    """
    state = writer.state
    done, reader.limit = state.get("samples", 0), state.get("limit", 0)
    digest = check_same(writer.folder, samples, state)
    lacking = dict(state.get("missing", {}))
    window = reader.settings.window
    with tqdm(total=len(samples), initial=done, desc="capture", unit="sample", disable=not progress) as bar:
        while done < len(samples):
            stop = min(len(samples), done + window)
            found = reader.window(samples[done:stop])
            writer.add([row for table in found.tables for row in table], found.features)
            for spec, count in missing(found.tables, reader.selectors).items():
                lacking[spec] = lacking.get(spec, 0) + count
            for sample in samples[done:stop]:
                digest.update(sample.digest().encode())
            bar.update(stop - done)
            bar.set_postfix(rows=reader.stats.rows)
            done = stop
            if writer.full or done == len(samples):
                state = {"samples": done, "digest": digest.hexdigest(), "limit": reader.limit, "missing": lacking}
                writer.commit(state)
                if after_commit is not None:
                    after_commit()
    writer.finish(samples=done, missing=lacking)


def _dtype(name: str | None, own: torch.dtype) -> torch.dtype:
    if name is None:
        return own
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype={name!r}: features are stored as float32, float16 or bfloat16")
    return getattr(torch, name)
