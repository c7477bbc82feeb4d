"""Whether a capture may go on: the samples a store was made from, distinct ids, and the size it will have."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hacl.representations.samples import Sample

if TYPE_CHECKING:
    from hacl.representations.batches import BatchReader


def check_same(folder: Path, samples: Sequence[Sample], state: Mapping[str, Any]):
    """The running hash of the samples that a store holds. Raises ValueError where those were others."""
    done = state.get("samples", 0)
    digest = prefix_digest(samples[:done])
    if state.get("digest", digest.hexdigest()) != digest.hexdigest():
        raise ValueError(
            f"{folder}: its first {done} samples were others (id, image, prompt or answer differ); "
            "give the same samples in the same order, or choose another folder"
        )
    return digest


def prefix_digest(samples: Sequence[Sample]):
    """A running hash over samples in order."""
    digest = hashlib.blake2b(digest_size=8)
    for sample in samples:
        digest.update(sample.digest().encode())
    return digest


def check_size(samples: Sequence[Sample], reader: BatchReader, max_bytes: int, out: Path, probe: int = 32) -> None:
    """Raises ValueError where the store would exceed `max_bytes` or the free disk, judged from the first samples."""
    settings, chosen = reader.settings, samples[:probe]
    if not chosen:
        return
    rows = 0
    for sample in chosen:
        free = settings.mode == "free"
        row = reader.encoder.row(sample, None if free else sample.answer, pixels=False)
        length = len(row.ids) + (settings.max_new_tokens if free else 0)
        rows += sum(length if selector.kind == "all" else 1 for selector in reader.selectors)
    width = reader.parts.hidden_size * reader.dtype.itemsize * len(reader.layers)
    size = int(rows / len(chosen) * len(samples) * width)
    existing = next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())
    limit = min(max_bytes, shutil.disk_usage(existing).free)
    if size > limit:
        raise ValueError(
            f"select={[s.spec for s in reader.selectors]} of {len(samples)} samples and {len(reader.layers)} layers "
            f"would take about {size / 2**30:.3g} GiB, over the limit of {limit / 2**30:.3g} GiB (max_bytes, or the "
            "free disk); choose fewer layers, positions or samples, or raise max_bytes"
        )


def check_ids(samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"two samples have the id {sample.id!r}; ids join captures, so each must be unique")
        seen.add(sample.id)
