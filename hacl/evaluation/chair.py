"""CHAIR: which objects a caption names that its image does not hold (Rohrbach et al., 2018, arXiv 1809.02156).

CHAIR_i is hallucinated mentions over all mentions, CHAIR_s captions with at least one hallucinated mention over
captions, recall distinct true objects mentioned over true objects; all pooled over captions. Mentions are counted with
repetition. A caption that names nothing is clean, so recall and mean length belong beside the two.

This is the scorer of our own vocabularies (the drawn world, the COCO words of :mod:`hacl.evaluation.coco_objects`):
exact words, plurals by rule. It is not one of the published COCO dialects, and says so in ``meta["dialect"]``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hacl.evaluation.reports import ScoreReport, ratio

TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "calves": "calf",
    "knives": "knife",
    "loaves": "loaf",
    "leaves": "leaf",
    "shelves": "shelf",
    "scarves": "scarf",
}


@dataclass(frozen=True)
class Mention:
    """One object named in a caption: the words as written, the object they mean, and their character offsets."""

    word: str
    object: str
    start: int
    end: int


class MentionExtractor:
    """Finds object mentions: longest match first, last word of a phrase in singular or plural.

    Args:
        vocabulary: word or phrase (lower case, singular or as written) -> object. ``None`` as object marks a phrase
            that names no object and hides the words inside it ("hot dog stand").

    Raises:
        ValueError: the vocabulary is empty or holds an empty phrase.
    """

    def __init__(self, vocabulary: Mapping[str, str | None]):
        self.phrases: dict[tuple[str, ...], str | None] = {}
        for phrase, name in vocabulary.items():
            words = tuple(TOKEN.findall(phrase.lower()))
            if not words:
                raise ValueError(f"vocabulary: phrase {phrase!r} has no word")
            self.phrases[words] = name
        if not self.phrases:
            raise ValueError("the vocabulary is empty, so no caption could name an object")
        self.longest = max(map(len, self.phrases))

    def mentions(self, caption: str) -> list[Mention]:
        """Mentions in the order of the caption; matched words are used once."""
        tokens = [(m.group().removesuffix("'s"), m.start(), m.end()) for m in TOKEN.finditer(caption.lower())]
        found, i = [], 0
        while i < len(tokens):
            for size in range(min(self.longest, len(tokens) - i), 0, -1):
                key = self._match([word for word, _, _ in tokens[i : i + size]])
                if key is not None:
                    name = self.phrases[key]
                    if name is not None:
                        start, end = tokens[i][1], tokens[i + size - 1][2]
                        found.append(Mention(caption[start:end], name, start, end))
                    i += size
                    break
            else:
                i += 1
        return found

    def objects(self, text: str) -> set[str]:
        """The distinct objects a text names; ground truth from reference captions uses it."""
        return {mention.object for mention in self.mentions(text)}

    def _match(self, words: Sequence[str]) -> tuple[str, ...] | None:
        for last in singular_forms(words[-1]):
            key = (*words[:-1], last)
            if key in self.phrases:
                return key
        return None


def singular_forms(word: str) -> Iterator[str]:
    """The word itself, then what it may be the plural of, likeliest first."""
    yield word
    if word in IRREGULAR:
        yield IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield word[:-3] + "f"
        yield word[:-3] + "fe"
    if word.endswith("s") and not word.endswith(("ss", "us")):
        yield word[:-1]
    if word.endswith("es"):
        yield word[:-2]


def score_chair(
    image_ids: Sequence[str],
    captions: Sequence[str],
    truth: Mapping[str, Collection[str]],
    extractor: MentionExtractor,
) -> ScoreReport:
    """Score captions against the objects of their images.

    Args:
        image_ids, captions: one per prediction; an image may have several captions.
        truth: image id to its objects (a mapping of counts works: its keys are the objects). Unite it with
            ``extractor.objects(reference caption)`` where the annotation is known to be incomplete.

    Returns:
        metrics ``CHAIRs``, ``CHAIRi``, ``Recall`` (fractions, None for 0/0) and ``mean_length`` (words); an item per
        caption with ``generated``, ``hallucinated``, ``gt`` and ``marks`` (character offsets of hallucinated mentions).

    Raises:
        ValueError: lengths differ, or an image has no ground truth.
    """
    if len(image_ids) != len(captions):
        raise ValueError(f"{len(image_ids)} image ids but {len(captions)} captions")
    report = ScoreReport(meta={"scorer": "chair", "version": 1, "dialect": "exact-words"})
    ratios: dict[str, list[tuple[float, float]]] = {"CHAIRs": [], "CHAIRi": [], "Recall": [], "mean_length": []}
    for image_id, caption in zip(image_ids, captions, strict=True):
        if image_id not in truth:
            raise ValueError(f"image {image_id!r}: no ground-truth objects; annotate it or leave it out of the scoring")
        objects = set(truth[image_id])
        mentions = extractor.mentions(caption)
        wrong = [mention for mention in mentions if mention.object not in objects]
        named = {mention.object for mention in mentions}
        ratios["CHAIRs"].append((float(bool(wrong)), 1.0))
        ratios["CHAIRi"].append((len(wrong), len(mentions)))
        ratios["Recall"].append((len(named & objects), len(objects)))
        ratios["mean_length"].append((len(caption.split()), 1.0))
        report.items.append(
            {
                "image_id": image_id,
                "caption": caption,
                "generated": [mention.object for mention in mentions],
                "hallucinated": [mention.object for mention in wrong],
                "gt": sorted(objects),
                "marks": [[mention.start, mention.end] for mention in wrong],
            }
        )
    report.ratios = ratios
    report.metrics = {name: ratio(pairs, name, report.warnings) for name, pairs in ratios.items()}
    report.counts = {
        "captions": len(captions),
        "mentions": int(sum(pair[1] for pair in ratios["CHAIRi"])),
        "hallucinated_mentions": int(sum(pair[0] for pair in ratios["CHAIRi"])),
        "captions_without_object": sum(pair[1] == 0 for pair in ratios["CHAIRi"]),
        "empty_captions": sum(not caption.strip() for caption in captions),
    }
    if report.counts["empty_captions"]:
        report.warnings.append(f"{report.counts['empty_captions']} captions are empty and count as clean")
    return report
