"""Pre-train the pocket base as a real base is: the language model on text, then projector and language model on images.

Text phase: captions to read, then questions about what was read and re-tellings of it. It teaches the words' statistics
(the co-occurrence prior) and makes hidden states of a caption carry what the caption says. Image phase: captions and
yes/no questions about scenes, with features of the frozen tower.

Shapes: B sequences, T tokens, N image tokens, Dv vision width, D hidden size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hacl.models.adapters import find_adapter
from hacl.models.pocket import ASSISTANT, BOS, EOS, IMAGE, NUM_IMAGE_TOKENS, USER
from hacl.pocket.language import PROMPTS, describe, questions, retell
from hacl.pocket.scenes import Scene, sample_scene


@dataclass
class Dialogue:
    """Token ids with the flags of those that are predicted. ``image`` is a row of the feature table, or None."""

    ids: list[int]
    is_label: list[bool]
    image: int | None = None


class DialogueEncoder:
    """Builds the ids that the chat template renders to, without the cost of rendering (a test holds the two equal)."""

    def __init__(self, tokenizer):
        self.vocabulary = tokenizer.get_vocab()
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
    """Endless text-only sequences: read a caption, then answer three questions about it or tell it again."""
    rng = random.Random(f"text/{seed}")
    index = 0
    while True:
        scene = sample_scene("train", index, seed + 1_000_000)
        index += 1
        told = retell(scene, rng)
        if rng.random() < 0.5:
            turns = questions(scene, 3, rng, relations=False)
        else:
            turns = [(rng.choice(PROMPTS), describe(scene, rng, relations=False).render())]
        yield encoder.encode(turns, read=told.render(), learn_read=True)


def image_dialogues(
    encoder: DialogueEncoder, scenes: list[Scene], seed: int, question_share: float
) -> Iterator[Dialogue]:
    """Endless image sequences over ``scenes``: a caption, or three questions in three turns."""
    rng = random.Random(f"image/{seed}")
    while True:
        for index in rng.sample(range(len(scenes)), len(scenes)):
            scene = scenes[index]
            if rng.random() < question_share:
                turns = questions(scene, 3, rng)
            else:
                turns = [(rng.choice(PROMPTS), describe(scene, rng).render())]
            yield encoder.encode(turns, image=index)


def train_language(
    model,
    dialogues: Iterator[Dialogue],
    *,
    features: Tensor | None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    name: str,
    report: Callable[[str], None] = print,
) -> float:
    """Train decoder and projector on ``steps`` batches, cosine schedule; returns the mean loss of the last 50 steps.

    features: (scenes, N, Dv) of the frozen tower, indexed by ``Dialogue.image``; None for text only.
    """
    adapter = find_adapter(model)
    trained = [p for p in (*adapter.decoder.parameters(), *adapter.lm_head.parameters())]
    if features is not None:
        trained += list(adapter.projector.parameters())
    trained = list(dict.fromkeys(trained))
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    adapter.vision_tower.eval()
    losses: list[float] = []
    for step in range(steps):
        batch = [next(dialogues) for _ in range(batch_size)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = dialogue_loss(adapter, batch, features)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99 or step == steps - 1:
            report(f"{name} step {step + 1}/{steps}: loss {sum(losses[-50:]) / len(losses[-50:]):.3f}")
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def dialogue_loss(adapter, batch: list[Dialogue], features: Tensor | None) -> Tensor:
    """Mean cross-entropy over the label tokens of right-padded sequences."""
    longest = max(len(item.ids) for item in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    label_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, item in enumerate(batch):
        ids_BT[row, : len(item.ids)] = torch.tensor(item.ids)
        label_BT[row, : len(item.ids)] = torch.tensor(item.is_label)
    embeds_BTD = adapter.embed(ids_BT)
    if features is not None:
        images = torch.tensor([item.image for item in batch])
        projected = adapter.project(features[images])
        place = (ids_BT == adapter.image_token_id).unsqueeze(-1)
        embeds_BTD = embeds_BTD.masked_scatter(place, projected)
    states_BTD = adapter.decoder(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    predicted = label_BT[:, 1:]
    return F.cross_entropy(adapter.logits(states_BTD[:, :-1][predicted]), ids_BT[:, 1:][predicted])
