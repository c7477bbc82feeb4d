"""Distinct causal contexts of a packed batch, one token at a time through dictionaries."""

from hacl.models.attention_masks import subtree_ends


def contexts(batch):
    """(distinct contexts, sum of their lengths, those without an image, sum of the lengths of these)."""
    ends = batch.get("subtree_end")
    ends = (subtree_ends(batch["segment_ids"]) if ends is None else ends).tolist()
    found = set()
    for row, segments in enumerate(batch["segment_ids"].tolist()):
        ids, images = batch["input_ids"][row].tolist(), batch["image_source"][row].tolist()
        for q, segment in enumerate(segments):
            if segment:
                found.add(tuple((ids[k], images[k]) for k in range(q + 1) if segments[k] and q < ends[row][k]))
    text = [context for context in found if all(image < 0 for _, image in context)]
    return len(found), sum(map(len, found)), len(text), sum(map(len, text))
