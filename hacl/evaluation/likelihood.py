"""Log-likelihood of texts given an image, and the caption margin: is the true caption likelier than a hallucinated one?

The margin is measured with the image, without any image (blind: what the language prior alone prefers) and with another
record's image (a control for having any image at all). Only what the right image adds is evidence of seeing.

Shapes: R rows, T tokens, D hidden size, V vocabulary, Nl label tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hacl.data.records import Record
from hacl.evaluation.generation import with_prompt
from hacl.evaluation.inputs import ImageEmbeddings, ImageLike, decode_rows, evaluating, image_paths, make_encoder
from hacl.evaluation.reports import ScoreReport, ratio

CONDITIONS = ("", "_blind", "_wrong_image")


@dataclass(frozen=True)
class LogLikelihoods:
    """total: summed log p of each text with its EOS, in nats; tokens: how many tokens that is. Arrays of one length."""

    total: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Nats per token."""
        return self.total / np.maximum(self.tokens, 1)


def log_likelihoods(
    model: nn.Module,
    processor,
    images: Sequence[ImageLike | None],
    texts: Sequence[str],
    *,
    prompt: str | Sequence[str] = "",
    template: str = "plain",
    batch_size: int = 16,
    progress: str = "",
) -> LogLikelihoods:
    """log p(text, EOS | image, prompt) for each pair; None as an image leaves the image tokens out.

    Where neither BOS nor prompt nor image comes before a text, nothing predicts its first token, which is left out.

    The vision tower runs once per image if the rows of an image are neighbours. Raises ValueError if lengths differ.
    """
    prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
    if not len(images) == len(texts) == len(prompts):
        raise ValueError(f"{len(images)} images, {len(texts)} texts, {len(prompts)} prompts: give one of each per row")
    encoder = make_encoder(processor, template)
    total, tokens = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    with evaluating(model) as device, tqdm(total=len(texts), desc=progress, disable=not progress, leave=False) as bar:
        embeddings = ImageEmbeddings(model, processor, device)
        adapter = embeddings.adapter
        for start in range(0, len(texts), batch_size):
            rows = range(start, min(start + batch_size, len(texts)))
            seen = [i for i in rows if images[i] is not None]
            found = iter(embeddings([images[i] for i in seen], [prompts[i] for i in seen]))
            shown = [None if images[i] is None else next(found) for i in rows]
            sequences = [
                with_prompt(encoder, prompts[i]).caption_sequence(
                    texts[i], with_image=image is not None, image=None if image is None else image.ids
                )
                for i, image in zip(rows, shown, strict=True)
            ]
            states_RTD, _ = decode_rows(adapter, sequences, shown)
            # The head sees label positions only: a (R, T, V) tensor would be the largest of the whole evaluation.
            labels = [(r, t) for r, s in enumerate(sequences) for t in s.predicted]
            row, column = torch.tensor(labels, dtype=torch.long, device=device).reshape(-1, 2).unbind(-1)
            target = torch.tensor([sequences[r].ids[t] for r, t in labels], dtype=torch.long, device=device)
            losses_Nl = nn.functional.cross_entropy(
                adapter.logits(states_RTD[row, column - 1]).float(), target, reduction="none"
            )
            sums = torch.zeros(len(sequences), dtype=torch.float64, device=device)
            total[start : start + len(sequences)] = -sums.index_add(0, row, losses_Nl.double()).cpu().numpy()
            tokens[start : start + len(sequences)] = torch.bincount(row, minlength=len(sequences)).cpu().numpy()
            bar.update(len(sequences))
    return LogLikelihoods(total, tokens)


def choose(
    model: nn.Module,
    processor,
    images: Sequence[ImageLike | None],
    questions: Sequence[str],
    choices: Sequence[str],
    *,
    template: str = "plain",
    batch_size: int = 16,
    progress: bool = True,
) -> list[str]:
    """The choice with the highest log-likelihood as the whole reply to each question; ties go to the last."""
    scores = choice_scores(
        model, processor, images, questions, choices, template=template, batch_size=batch_size, progress=progress
    )
    last = len(choices) - 1
    return [choices[last - int(np.argmax(row[::-1]))] for row in scores]


def choice_scores(
    model: nn.Module,
    processor,
    images: Sequence[ImageLike | None],
    questions: Sequence[str],
    choices: Sequence[str],
    *,
    template: str = "plain",
    batch_size: int = 16,
    progress: bool = True,
) -> np.ndarray:
    """log p(choice | image, question), (questions, choices), in nats."""
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} images but {len(questions)} questions")
    result = log_likelihoods(
        model,
        processor,
        [image for image in images for _ in choices],
        [choice for _ in questions for choice in choices],
        prompt=[question for question in questions for _ in choices],
        template=template,
        batch_size=batch_size,
        progress="answers" if progress else "",
    )
    return result.total.reshape(len(questions), len(choices))


def caption_margins(
    model: nn.Module,
    processor,
    records: Sequence[Record],
    image_root: Path | str,
    *,
    prompt: str = "",
    template: str = "plain",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> ScoreReport:
    """Compare every hallucinated caption with the caption it was made from (the first, where it does not say).

    Metrics, with the suffixes none (right image), ``_blind`` and ``_wrong_image``:
        margin_accuracy: share of pairs in which the true caption has more nats per token (a tie is wrong);
        margin_accuracy_sum: the same by the sum over tokens, which favours short texts;
        margin: mean difference, nats per token.
    And: margin_gain_blind, margin_gain_wrong_image: accuracy with the right image minus that baseline, pair by pair;
        margin_accuracy_pmi: by log p(text | image) - log p(text), which takes the language prior out.
    Every metric also exists by type as ``name/type``, and ``groups`` holds them by type. One item per pair.

    Raises:
        ValueError: no pair at all, or fewer than two images (no wrong image to show).
    """
    plan = plan_margins(records, image_root, seed)
    scores = {
        condition: log_likelihoods(
            model,
            processor,
            images,
            [text for _, text in plan.rows],
            prompt=prompt,
            template=template,
            batch_size=batch_size,
            progress=f"log p{condition.replace('_', ' ')}" if progress else "",
        )
        for condition, images in plan.shown.items()
    }
    report = margin_report(plan, scores)
    report.meta.update(template=template, prompt=prompt, seed=seed)
    return report


@dataclass(frozen=True)
class MarginPlan:
    """What a caption margin asks: rows are (index of the record, text); shown holds each condition's image per row."""

    records: list[Record]
    wrong: list[int]
    rows: list[tuple[int, str]]
    shown: dict[str, list[Path | None]]


def plan_margins(records: Sequence[Record], image_root: Path | str, seed: int = 0) -> MarginPlan:
    """The distinct texts of every record, to be shown with its image, with none, and with another record's.

    Raises:
        ValueError: no pair at all, or fewer than two images (no wrong image to show).
    """
    usable = [record for record in records if record.captions and record.hallucinated and len(record.images) == 1]
    if not usable:
        raise ValueError("no record has one image, a caption and a hallucinated caption; run make_hallucinations first")
    paths = image_paths(usable, image_root)
    wrong = _derangement([record.image_id for record in usable], seed)
    texts = [list(dict.fromkeys([*r.captions, *(h.text for h in r.hallucinated)])) for r in usable]
    rows = [(i, text) for i, found in enumerate(texts) for text in found]
    shown = {
        "": [paths[i] for i, _ in rows],
        "_blind": [None] * len(rows),
        "_wrong_image": [paths[wrong[i]] for i, _ in rows],
    }
    return MarginPlan(usable, wrong, rows, shown)


def margin_report(plan: MarginPlan, scores: Mapping[str, LogLikelihoods]) -> ScoreReport:
    """The report of `caption_margins` from the log-likelihoods of each condition, one per row of the plan."""
    position = {key: n for n, key in enumerate(plan.rows)}
    report = ScoreReport(meta={"scorer": "caption_margin", "version": 1})
    for i, record in enumerate(plan.records):
        for edited in record.hallucinated:
            true = record.captions[edited.of if edited.of is not None else 0]
            a, b = position[i, true], position[i, edited.text]
            item = {"image_id": record.image_id, "type": edited.type, "true": true, "hallucinated": edited.text}
            for condition, score in scores.items():
                item[f"margin{condition}"] = float(score.mean[a] - score.mean[b])
                item[f"margin_sum{condition}"] = float(score.total[a] - score.total[b])
            report.items.append(item)
    report.meta["wrong_images"] = {
        r.image_id: plan.records[w].image_id for r, w in zip(plan.records, plan.wrong, strict=True)
    }
    summarise_margins(report)
    return report


def summarise_margins(report: ScoreReport) -> None:
    """Fill metrics, groups and ratios of a report whose items hold margins (pure arithmetic on ``report.items``)."""
    values: dict[str, list[float]] = {}
    for item in report.items:
        row = {}
        for condition in CONDITIONS:
            row[f"margin_accuracy{condition}"] = float(item[f"margin{condition}"] > 0)
            row[f"margin_accuracy_sum{condition}"] = float(item[f"margin_sum{condition}"] > 0)
            row[f"margin{condition}"] = item[f"margin{condition}"]
        row["margin_accuracy_pmi"] = float(item["margin_sum"] > item["margin_sum_blind"])
        for condition in CONDITIONS[1:]:
            row[f"margin_gain{condition}"] = row["margin_accuracy"] - row[f"margin_accuracy{condition}"]
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    types = [item["type"] for item in report.items]
    for name, column in values.items():
        report.ratios[name] = [(value, 1.0) for value in column]
        for kind in sorted(set(types)):
            pairs = [(v, 1.0) if t == kind else (0.0, 0.0) for v, t in zip(column, types, strict=True)]
            report.ratios[f"{name}/{kind}"] = pairs
            report.groups.setdefault(kind, {})[name] = ratio(pairs, f"{name}/{kind}", report.warnings)
    report.metrics = {name: ratio(pairs, name, report.warnings) for name, pairs in report.ratios.items()}
    report.counts = {"pairs": len(types)} | {f"pairs/{kind}": types.count(kind) for kind in sorted(set(types))}


def _derangement(image_ids: Sequence[str], seed: int) -> list[int]:
    """For each record the index of a record with another image, by one seeded cycle over the distinct images."""
    first = {image_id: i for i, image_id in reversed(list(enumerate(image_ids)))}
    cycle = sorted(first)
    if len(cycle) < 2:
        raise ValueError("the wrong-image control needs records of at least two images")
    random.Random(seed).shuffle(cycle)
    following = {image_id: cycle[(n + 1) % len(cycle)] for n, image_id in enumerate(cycle)}
    return [first[following[image_id]] for image_id in image_ids]
