"""Images of LLaVA-OneVision say how many their text has, once for each text."""

import torch

from hacl.data.image_formats import FORMATS


def test_a_text_of_several_images_before_one_of_a_single_image_is_counted_once():
    counts = (3, 3, 3, 1, 2, 2)
    made = {"pixel_values": torch.zeros(1, 1, 3, 2, 2), "image_sizes": torch.ones(1, 2, dtype=torch.long)}
    images = [{**made, "batch_num_images": torch.tensor([count])} for count in counts]
    found = FORMATS["LlavaOnevisionProcessor"].collate(images)
    assert found["batch_num_images"].tolist() == [3, 1, 2] and len(found["pixel_values"]) == len(counts)
