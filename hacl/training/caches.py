"""Features of a frozen vision tower and states of constant texts, computed once and read from memory-mapped shards.

A cache lives in a folder named after what made it (weights, preprocessing, layer, pooling), so another model never sees
it; it is refused where the module it stands for can change. Ranks compute disjoint parts and then read all of them.

Shapes: I images, N image tokens, Dv vision width, M texts, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hacl.config import Config, ConfigError
from hacl.data.images import load_image, resolve_image
from hacl.data.parallel import chunked
from hacl.data.text_cache import TextCache
from hacl.training import manifest, runtime
from hacl.training.objective import HaclModel, constant_text, is_frozen, text_states
from hacl.training.stopping import Stopped, StopRequest

SHARD_BYTES = 256 * 2**20


class RowStore:
    """Rows of one shape in safetensors shards, found by string key. `rows(keys)` copies only the rows asked for.

    Beside each shard lies a JSON file with its keys and what the rows were made from, written last: a shard is either
    complete or unseen, an interruption keeps those that are done, and several runs may extend one folder.
    """

    def __init__(self, folder: Path, meta: dict):
        self.folder, self.meta = folder, meta
        self._shards: list[str] = []
        self._place: dict[str, tuple[int, int]] = {}
        self._open: dict[int, Tensor] = {}
        for listing in sorted(folder.glob("rows-*.json")):
            content = json.loads(listing.read_text(encoding="utf-8"))
            if content["meta"] != meta:
                raise ValueError(f"{listing}: made from something else, {content['meta']}; set train.cache_dir")
            if listing.with_suffix(".safetensors").is_file():
                self._register(listing.stem, content["keys"])

    def _register(self, name: str, keys: Sequence[str]) -> None:
        number = len(self._shards)
        self._shards.append(name)
        self._place.update({key: (number, row) for row, key in enumerate(keys)})

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def extend(
        self,
        keys: Sequence[str],
        compute: Callable[[Sequence[str]], Tensor],
        batch: int,
        stop: StopRequest | None = None,
    ) -> None:
        """Add the keys that any rank lacks. Every rank calls this with the same keys and computes its share.

        compute: some keys -> (len(keys), ...) rows on the CPU. Ranks meet after every shard, so that all stop when one
        fails or was asked to. What was computed before is kept. Raises Stopped; the error of this rank, or ValueError
        for that of another; ValueError on all ranks where one still lacks a key.
        """
        keys = list(dict.fromkeys(keys))
        absent = runtime.all_ranks([place for place, key in enumerate(keys) if key not in self._place])
        missing = [keys[place] for place in sorted(set().union(*absent))]
        mine = deque(chunked(missing[runtime.rank() :: runtime.world_size()], batch))
        self.folder.mkdir(parents=True, exist_ok=True)
        more = bool(missing)
        while more:
            written, failure = {}, None
            try:
                self._add_shard(mine, compute, written)
            except (Exception, KeyboardInterrupt) as error:  # whatever it is, the other ranks wait to hear of it
                failure = error
            more = self._meet(written, failure, None if stop is None else stop.received, bool(mine))
        for rank, lost in enumerate(runtime.all_ranks([key for key in keys if key not in self._place][:1])):
            if lost:
                raise ValueError(
                    f"{self.folder}: rank {rank} lacks {lost[0].splitlines()[0]!r} after all was computed; let all "
                    "ranks read the same files, of the same size and time of change"
                )

    def _meet(
        self, written: dict[str, list[str]], failure: BaseException | None, asked: str | None, left: bool
    ) -> bool:
        """Learn of the shards of all ranks, and whether any has keys left; raises, on all, what ends one of them."""
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        parts, failures, requests, more = zip(*runtime.all_ranks((written, told, asked, left)), strict=True)
        for name, keys in (shard for part in parts for shard in part.items()):
            self._register(name, keys)
        if failure is not None:
            raise failure
        for rank, message in enumerate(failures):
            if message is not None:
                raise ValueError(f"rank {rank} could not compute its part of {self.folder}: {message}")
        if any(requests):
            raise Stopped(next(filter(None, requests)), 0, saved=False)
        return any(more)

    def _add_shard(
        self, todo: deque[list[str]], compute: Callable[[Sequence[str]], Tensor], written: dict[str, list[str]]
    ) -> None:
        """Take batches of keys from `todo` until they fill a shard; it is written, and noted, on an error too."""
        keys: list[str] = []
        rows: list[Tensor] = []
        size = 0
        try:
            while todo and size < SHARD_BYTES:
                rows.append(compute(todo[0]))
                keys += todo.popleft()
                size += rows[-1].nbytes
        finally:
            if keys:
                written[self._write_shard(keys, torch.cat(rows))] = keys

    def _write_shard(self, keys: Sequence[str], rows: Tensor) -> str:
        from safetensors.torch import save_file

        name = "rows-" + hashlib.blake2b("\n".join(keys).encode(), digest_size=8).hexdigest()
        temporary = self.folder / f"{name}.{os.getpid()}.tmp"
        save_file({"rows": rows.contiguous()}, temporary, metadata={"format": "pt"})
        os.replace(temporary, self.folder / f"{name}.safetensors")
        temporary.write_text(json.dumps({"meta": self.meta, "keys": list(keys)}), encoding="utf-8")
        os.replace(temporary, self.folder / f"{name}.json")
        return name

    def rows(self, keys: Sequence[str]) -> Tensor:
        """Rows of the keys, in order, copied to ordinary memory. Raises KeyError naming a key that is not there."""
        found = []
        for key in keys:
            number, row = self._place[key]
            if number not in self._open:
                from safetensors.torch import load_file

                file = self.folder / f"{self._shards[number]}.safetensors"
                self._open[number] = load_file(file)["rows"]  # memory-mapped
            found.append(self._open[number][row])
        return torch.stack(found)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


class FeatureCache:
    """Image path -> features of the frozen tower, before the projector; of one image at least."""

    def __init__(self, store: RowStore, keys: dict[str, str]):
        self._store, self._keys = store, keys

    def lookup(self, paths: Sequence[str]) -> Tensor:
        """(I, N, Dv). Raises KeyError naming an image that was not cached."""
        return self._store.rows([self._keys[path] for path in paths])

    def blank(self) -> Tensor:
        """(1, N, Dv) of zeros, for a batch without images."""
        first = next(iter(self._keys.values()))
        return torch.zeros_like(self._store.rows([first]))


class TextStateCache:
    """Token ids of a root -> its pooled state before the heads."""

    def __init__(self, store: RowStore, width: int, dtype: torch.dtype):
        self._store, self.width, self.dtype = store, width, dtype

    def lookup(self, roots: Sequence[Sequence[int]]) -> Tensor:
        """(M, D). Raises KeyError for a text that was not cached."""
        return self._store.rows([root_key(root) for root in roots])


def root_key(root: Iterable[int]) -> str:
    return hashlib.blake2b(json.dumps([int(token) for token in root]).encode(), digest_size=12).hexdigest()


@dataclass
class Stores:
    """What `PackedCollator` takes; None = compute live."""

    features: FeatureCache | None = None
    texts: TextStateCache | TextCache | None = None


def wanted(config: Config) -> bool:
    """Whether any cache may apply; exact eligibility is decided from requires_grad in `prepare`."""
    texts = config.train.cache_text_states and config.objective.contrastive_weight > 0
    on_disk = config.train.text_cache is not None
    return config.train.cache_vision_features or on_disk or (texts and config.model.learning_rate.llm == 0)


def prepare(config: Config, inputs, model: HaclModel, stop: StopRequest | None = None) -> Stores:
    """Open the caches of a run and compute what they lack. `model` is not sharded. Every rank calls this.

    Raises Stopped where `stop` was asked on any rank while they compute, and ConfigError where the tower trains, no
    record has an image or the family's tower cannot be run by itself although train.cache_vision_features is set.
    """
    train = config.train
    root = Path(train.cache_dir) if train.cache_dir else Path(train.output_dir) / "cache"
    folder = manifest.model_folder(config.model.path, config.model.revision)
    device = runtime.local_device()
    model.to(device).eval()
    stores = Stores()
    if train.cache_vision_features:
        if not is_frozen(model.adapter.vision_tower):
            raise ConfigError("train.cache_vision_features=true, but model.learning_rate.vision > 0 changes them")
        if not model.adapter.is_split:
            raise ConfigError(
                "train.cache_vision_features=true, but the features of a "
                f"{model.adapter.model.config.model_type} model cannot be stored before its projector: set it to false"
            )
        stores.features = _features(root, folder, inputs, model, device, stop)
    if train.text_cache is not None:
        from hacl.training.cache_text import open_text_cache

        stores.texts = open_text_cache(config, inputs, model)
    elif train.cache_text_states and config.objective.contrastive_weight > 0 and constant_text(model.backbone):
        stores.texts = _texts(root, folder, config, inputs, model, device, stop)
    return stores


def open_store(root: Path, kind: str, meta: dict) -> RowStore:
    name = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=6).hexdigest()
    return RowStore(root / f"{kind}-{name}", meta)


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def config_digest(config) -> str:
    """Names a (sub)configuration by what can change its module's output; where it lay and who saved it cannot."""
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return digest(json.dumps(settings, sort_keys=True, default=str))


def last_names(paths: Sequence[str]) -> list[str]:
    """What names of a part's tensors contain in every layout of a checkpoint, where they contain it at all."""
    return [path.rpartition(".")[2] for path in paths]


def vision_meta(folder: Path, inputs, model: HaclModel) -> dict:
    """All that decides the features of an image: weights, tower, preprocessing, selection, dtype."""
    settings = json.dumps(inputs.processor.image_processor.to_dict(), sort_keys=True, default=str)
    selection = model.adapter.model.config
    return {
        "kind": "vision features before the projector",
        "weights": manifest.fingerprint(folder, last_names(model.adapter.VISION)),
        "tower": config_digest(selection.vision_config),
        "preprocessing": digest(settings),
        "layer": str(getattr(selection, "vision_feature_layer", None)),
        "strategy": str(getattr(selection, "vision_feature_select_strategy", None)),
        "tokens": inputs.encoder.num_image_tokens,
        "dtype": str(next(model.adapter.vision_tower.parameters()).dtype),
    }


def _features(
    root: Path, folder: Path, inputs, model: HaclModel, device: torch.device, stop: StopRequest | None
) -> FeatureCache:
    dtype = next(model.adapter.vision_tower.parameters()).dtype
    keys: dict[str, str] = {}
    for record in (*inputs.records, *inputs.eval_records):
        for path in record.images:
            if path not in keys:
                stat = resolve_image(inputs.image_root, path).stat()
                keys[path] = f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}"
    if not keys:
        raise ConfigError("train.cache_vision_features=true, but no record has an image; set it to false")
    files = {key: path for path, key in keys.items()}

    @torch.no_grad()
    def compute(chosen: Sequence[str]) -> Tensor:
        images = [load_image(resolve_image(inputs.image_root, files[key])) for key in chosen]
        pixels = [inputs.encoder.images.tensors(image)["pixel_values"] for image in images]
        return model.adapter.vision_features(torch.cat(pixels).to(device, dtype)).cpu()

    store = open_store(root, "vision", vision_meta(folder, inputs, model))
    store.extend(list(files), compute, batch=16, stop=stop)
    return FeatureCache(store, keys)


def _texts(
    root: Path, folder: Path, config: Config, inputs, model: HaclModel, device, stop: StopRequest | None
) -> TextStateCache:
    from hacl.training.run import build_dataset

    objective = config.objective
    dtype = next(model.adapter.decoder.parameters()).dtype
    meta = {
        "kind": "pooled text states before the heads",
        "weights": manifest.fingerprint(folder, last_names([model.adapter.DECODER])),
        "decoder": config_digest(model.adapter.decoder.config),
        "layer": objective.layer,
        "pool": objective.text_pool,
        "dtype": str(dtype),
    }
    texts: dict[str, None] = {}
    for records in (inputs.records, inputs.eval_records):
        texts.update(dict.fromkeys(build_dataset(config, inputs, records, pixels=False).texts()))
    roots: dict[str, Hashable] = {}
    for text in texts:
        ids = tuple(inputs.encoder.root(text))
        roots[root_key(ids)] = ids

    def compute(chosen: Sequence[str]) -> Tensor:
        return text_states(model, [roots[key] for key in chosen], encoder=inputs.encoder, device=device).to(dtype)

    store = open_store(root, "texts", meta)
    store.extend(sorted(roots, key=lambda key: len(roots[key])), compute, batch=512, stop=stop)
    return TextStateCache(store, model.adapter.hidden_size, dtype)
