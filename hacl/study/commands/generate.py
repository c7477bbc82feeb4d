"""`steer.py generate`: replies of a steered model, several strengths in one batch, one JSON line each."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hacl.compare.divergence import quiet
from hacl.data.records import read_records
from hacl.evaluation.generation import Generator
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.source import ModelSource, find_model
from hacl.evaluation.runner.store import AnswerStore, write_lines
from hacl.models.identity import versions
from hacl.representations.samples import Sample, samples_from_records
from hacl.steering import Steerer, load_steerer, steering
from hacl.steering.commands.extract import layer_keys
from hacl.steering.vectors import read_steering_manifest
from hacl.study.inputs import prompt_samples

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Asked:
    """One reply to be made. key: names it in the store, by all that is asked: the same id may mean something else."""

    sample: Sample
    alpha: float

    @property
    def key(self) -> str:
        return f"{self.alpha:g}/{self.sample.digest()}"


def run(options: Namespace, open_model: Callable[[Namespace], tuple[Any, Any, str]]) -> int:
    """Generate what is missing, write predictions.jsonl, say where."""
    source = find_model(options.model, base=options.base)
    samples = samples_of(options, source)
    manifest = read_steering_manifest(options.steer)
    steerer = load_steerer(options.steer, model=source.folder)
    alphas = list(dict.fromkeys(options.alpha or [float(steerer.alpha)]))
    layers = layer_keys(options.layers) if options.layers else None
    policy = options.policy or str(steerer.policy)
    decoding = Decoding(options.max_new_tokens, temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    model, processor, template = open_model(options)
    named = {
        "model": source.fingerprint, "steering": manifest["sha256"], "kind": manifest["kind"], "policy": policy,
        "layers": layers or list(manifest.get("layers") or ()), "seed": options.seed,
    }  # fmt: skip
    store = AnswerStore(options.out, {
        **named, "norm": manifest["norm"], "template": template, "dtype": options.dtype, "decoding": decoding.to_json(),
        "artefact": str(options.steer), "versions": versions(),
    })  # fmt: skip
    store.open(write=True)
    wanted = [Asked(sample, alpha) for sample in samples for alpha in alphas]
    done = store.read()
    missing = [asked for asked in wanted if asked.key not in done]
    generator = Generator(model, processor, template=template, decoding=decoding)
    answer_all(generator, steerer, missing, store, layers=layers, policy=policy, batch_size=options.batch_size)
    rows = store.merge(asked.key for asked in wanted)
    write_lines(options.out / PREDICTIONS, (prediction(asked, rows[asked.key], named) for asked in wanted))
    print(f"{len(wanted)} replies ({len(samples)} prompts at {len(alphas)} strengths), {len(missing)} of them made now")
    print(f"written: {options.out / PREDICTIONS}")
    return 0


def samples_of(options: Namespace, source: ModelSource) -> list[Sample]:
    """The prompts that the options name. Raises ValueError where they name none, or two kinds."""
    if (options.rows is None) == (options.records is None):
        raise ValueError("give --rows (id, prompt, image) or --records (images to caption)")
    if options.rows is not None:
        return prompt_samples(options.rows, options.images, options.limit)
    if options.images is None:
        raise ValueError("--records needs --images, the folder its image paths start from")
    prompt = options.prompt if options.prompt is not None else source.prompt or ""
    return samples_from_records(read_records(options.records, limit=options.limit), options.images, prompt=prompt)


def answer_all(
    generator: Generator,
    steerer: Steerer,
    missing: Sequence[Asked],
    store: AnswerStore,
    *,
    layers: Sequence[int | str] | None,
    policy: str,
    batch_size: int,
) -> None:
    """Ask and keep, batch by batch; rows of one batch have their own strengths.

    The noise of a sampled reply comes from seed and sample id, so that strengths are compared under the same noise.
    """
    lengths = {a.key: len(generator.prompt_ids(a.sample.prompt, a.sample.image)) for a in missing}
    order = sorted(missing, key=lambda a: lengths[a.key])
    session = steering(generator.model, steerer, layers=layers, policy=policy)
    with (
        store.shard(0) as shard, tqdm(total=len(order), desc="generate", unit="reply") as bar, quiet(), session,
    ):  # fmt: skip
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids = [asked.sample.id for asked in batch]
            with session.rows(sample_ids=ids, alpha=[asked.alpha for asked in batch]):
                images, prompts = [a.sample.image for a in batch], [a.sample.prompt for a in batch]
                replies = generator.replies(images, prompts, names=ids)
            shard.append(
                {"key": asked.key, "text": reply.text, "tokens": len(reply.ids), "finished": reply.stopped}
                for asked, reply in zip(batch, replies, strict=True)
            )
            bar.update(len(batch))


def prediction(asked: Asked, row: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """One line of predictions.jsonl."""
    image = asked.sample.image
    return {
        "id": asked.sample.id, "image_id": asked.sample.group, "image": None if image is None else Path(image).name,
        "prompt": asked.sample.prompt, "alpha": asked.alpha, "response": row["text"], "tokens": row["tokens"],
        "finished": row["finished"], **named,
    }  # fmt: skip
