"""Pre-train the pocket base as a real base is: the language model on text, then projector and language model on images.

Text: captions, and questions about a caption that was read. It teaches the words' statistics (the co-occurrence prior)
and makes hidden states of a caption carry what the caption says. Images: dense read-outs of the grid that tie features
to words, then captions and questions, with features of the frozen tower and text in between.

Shapes: B sequences, T tokens, N image tokens, Dv vision width, D hidden size, M features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hacl.models.adapters import Adapter, find_adapter
from hacl.models.pocket import ASSISTANT, BOS, EOS, IMAGE, NUM_IMAGE_TOKENS, USER
from hacl.pocket.language import GRID_PROMPT, PROMPTS, describe, questions, read_grid, retell
from hacl.pocket.scenes import GRID, Scene, sample_scene

QUESTIONS = 8  # per dialogue
_BUCKET = 8  # batches that are sorted by length together


@dataclass
class Dialogue:
    """Token ids with the flags of those that are predicted. ``image`` is a row of the feature table, or None."""

    ids: list[int]
    is_label: list[bool]
    image: int | None = None


class DialogueEncoder:
    """Builds the ids that the chat template renders to, without the cost of rendering (a test holds the two equal)."""

    def __init__(self, vocabulary: dict[str, int]):
        self.vocabulary = vocabulary
        self.image = [self.vocabulary[IMAGE]] * NUM_IMAGE_TOKENS

    def words(self, text: str) -> list[int]:
        return [self.vocabulary[word] for word in text.split()]

    def encode(
        self, turns: list[tuple[str, str]], image: int | None = None, read: str = "", learn_read: bool = False
    ) -> Dialogue:
        """(question, answer) turns. The first question is preceded by the image, or by the text ``read``."""
        ids, labels = [self.vocabulary[BOS]], [False]
        for index, (question, answer) in enumerate(turns):
            ids.append(self.vocabulary[USER])
            labels.append(False)
            if index == 0:
                context = self.words(read) + (self.image if image is not None else [])
                ids += context
                labels += [learn_read] * len(context)
            asked = [*self.words(question), self.vocabulary[ASSISTANT]]
            said = [*self.words(answer), self.vocabulary[EOS]]
            ids += asked + said
            labels += [False] * len(asked) + [True] * len(said)
        return Dialogue(ids, labels, image)


def text_dialogues(encoder: DialogueEncoder, seed: int) -> Iterator[Dialogue]:
    """Endless text-only sequences: a caption alone, or one to read with questions about it or a second telling."""
    rng = random.Random(f"text/{seed}")
    index = 0
    while True:
        scene = sample_scene("train", index, seed + 1_000_000)
        index += 1
        draw = rng.random()
        if draw < 0.25:
            yield encoder.encode([(rng.choice(PROMPTS), describe(scene, rng).render())])
            continue
        read = retell(scene, rng).render()
        if draw < 0.75:
            yield encoder.encode(questions(scene, QUESTIONS, rng, relations=False), read=read)
        else:
            told = describe(scene, rng, relations=False).render()
            yield encoder.encode([(rng.choice(PROMPTS), told)], read=read, learn_read=True)


def image_dialogues(
    encoder: DialogueEncoder, scenes: list[Scene], seed: int, *, read_outs: float, asked: float, text: float
) -> Iterator[Dialogue]:
    """Endless sequences over ``scenes``: grid read-outs, questions and text in these shares, captions for the rest."""
    rng = random.Random(f"image/{seed}/{read_outs}")
    texts = text_dialogues(encoder, seed + 1)
    while True:
        for index in rng.sample(range(len(scenes)), len(scenes)):
            scene, draw = scenes[index], rng.random()
            if draw < text:
                yield next(texts)
            elif draw < text + read_outs:
                yield encoder.encode([(GRID_PROMPT, read_grid(scene))], image=index)
            elif draw < text + read_outs + asked:
                yield encoder.encode(questions(scene, QUESTIONS, rng), image=index)
            else:
                yield encoder.encode([(rng.choice(PROMPTS), describe(scene, rng).render())], image=index)


@torch.no_grad()
def align_projector(adapter: Adapter, features_BND: Tensor, scenes: Sequence[Scene], vocabulary, seed: int) -> float:
    """Start the projector where a cell's feature is about the sum of its words' embeddings; returns the fit (R
    squared).

    First layer: random directions of the whitened features. Second layer: ridge regression onto the words of the cell.
    A projector started at random costs this model most of its training before it sees anything at all.
    """
    generator = torch.Generator().manual_seed(seed)
    words = adapter.embed_tokens.weight
    target_BND = words[vocabulary["nothing"]].expand(len(scenes), GRID * GRID, -1).clone()
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            cell = thing.row * GRID + thing.column
            target_BND[index, cell] = words[vocabulary[thing.kind]] + words[vocabulary[thing.colour]]
    features_MD, target_MD = features_BND.flatten(0, 1), target_BND.flatten(0, 1)
    mean_D = features_MD.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features_MD - mean_D).T))
    kept = min(64, len(values))
    whiten = vectors[:, -kept:] / torch.sqrt(values[-kept:] + 0.02 * values[-1])
    first, second = adapter.projector.linear_1, adapter.projector.linear_2
    directions = torch.randn(first.out_features, kept, generator=generator) * 1.5 / math.sqrt(kept)
    first.weight.copy_(directions @ whiten.T)
    first.bias.copy_(-(first.weight @ mean_D))
    hidden = F.pad(adapter.projector.act(first(features_MD)), (0, 1), value=1.0)
    gram = hidden.T @ hidden
    gram += 1e-3 * len(hidden) * hidden.square().mean() * torch.eye(len(gram))
    solution = torch.linalg.solve(gram, hidden.T @ target_MD)
    second.weight.copy_(solution[:-1].T)
    second.bias.copy_(solution[-1])
    residual = (hidden @ solution - target_MD).square().sum()
    return 1 - (residual / (target_MD - target_MD.mean(0)).square().sum()).item()


@dataclass
class Phase:
    """``steps`` batches from ``dialogues``."""

    name: str
    steps: int
    dialogues: Iterator[Dialogue]


def train_language(
    model,
    phases: Sequence[Phase],
    *,
    features: Tensor | None,
    batch_size: int,
    learning_rate: float = 0.01,
    embedding_rate: float = 1e-3,
    warmup: int = 30,
    decay: float = 0.4,
    before: dict[str, Callable[[], None]] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train decoder and projector through ``phases`` with one schedule; returns the last mean loss of each phase.

    Matrices of the decoder blocks learn by Muon (twice as fast here as AdamW), everything else by AdamW. The rate is
    constant after ``warmup`` and falls to zero over the last ``decay`` of all steps. features: (scenes, N, Dv) of the
    frozen tower, indexed by ``Dialogue.image``. before: what to do when a phase of that name begins.
    """
    adapter = find_adapter(model)
    matrices = [p for p in adapter.blocks.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    everything = (*adapter.decoder.parameters(), *adapter.lm_head.parameters(), *adapter.projector.parameters())
    others = [p for p in dict.fromkeys(everything) if id(p) not in inside]
    optimizers = [
        torch.optim.Muon(matrices, lr=learning_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=embedding_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    rates = [learning_rate, embedding_rate]
    total = sum(phase.steps for phase in phases)
    model.train()
    adapter.vision_tower.eval()
    done, last = 0, {}
    for phase in phases:
        if before and phase.name in before:
            before[phase.name]()
        losses: list[float] = []
        batches = _batches(phase.dialogues, batch_size)
        for step in range(phase.steps):
            scale = min(1.0, (done + 1) / warmup, (total - done) / (decay * total))
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * scale
                optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                loss = dialogue_loss(adapter, next(batches), features)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
            done += 1
            if step % 100 == 99 or step == phase.steps - 1:
                last[phase.name] = sum(losses[-50:]) / len(losses[-50:])
                report(f"{phase.name} step {step + 1}/{phase.steps}: loss {last[phase.name]:.3f}")
    model.eval()
    return last


def _batches(dialogues: Iterator[Dialogue], batch_size: int) -> Iterator[list[Dialogue]]:
    """Batches of similar length, in random order within each bucket, so that little is padded."""
    rng = random.Random("batches")
    while True:
        bucket = sorted((next(dialogues) for _ in range(_BUCKET * batch_size)), key=lambda item: len(item.ids))
        chunks = [bucket[start : start + batch_size] for start in range(0, len(bucket), batch_size)]
        rng.shuffle(chunks)
        yield from chunks


def dialogue_loss(adapter, batch: list[Dialogue], features: Tensor | None) -> Tensor:
    """Mean cross-entropy over the label tokens of right-padded sequences."""
    longest = max(len(item.ids) for item in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    label_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, item in enumerate(batch):
        ids_BT[row, : len(item.ids)] = torch.tensor(item.ids)
        label_BT[row, : len(item.ids)] = torch.tensor(item.is_label)
    embeds_BTD = adapter.embed(ids_BT)
    images = [item.image for item in batch if item.image is not None]
    if images:
        projected = adapter.project(features[torch.tensor(images)]).to(embeds_BTD.dtype)
        place = (ids_BT == adapter.image_token_id).unsqueeze(-1)
        embeds_BTD = embeds_BTD.masked_scatter(place, projected)
    states_BTD = adapter.decoder(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    predicted = label_BT[:, 1:]
    return F.cross_entropy(adapter.logits(states_BTD[:, :-1][predicted]).float(), ids_BT[:, 1:][predicted])
