"""Where image features read the prompt, steering reads each side of a row with features of its own prompt."""

from __future__ import annotations

import pytest
import torch

from hacl.representations.encoding import RowEncoder
from hacl.representations.parts import find_parts
from hacl.steering.extraction_rows import ContrastRow, Side
from hacl.steering.extraction_states import encode, read_batch


@torch.no_grad()
@pytest.mark.parametrize("suffix", [" a red square", ""])
def test_each_side_is_its_own_stock_forward_pass(family, tmp_path, suffix):
    if not family.facts.features_read_text:
        pytest.skip("its image features do not read the prompt")
    family.images[0].save(tmp_path / "0.png")
    sides = Side("yes the square", suffix=suffix), Side("no", suffix=suffix and " a blue circle on the left")
    row = ContrastRow("a", "describe the image", *sides, "yes", tmp_path / "0.png")
    encoder, parts = RowEncoder(family.processor), find_parts(family.model)
    branched = encode(encoder, row, "last_answer", "last_prompt")
    assert bool(branched.shared) == (not suffix)
    layer = "0"
    found = read_batch(family.model, parts, encoder, [branched], {name: [layer] for name in ("context", "pos", "neg")})
    prompts = [row.prompt, *(row.prompt + side.suffix for side in sides)]
    for branch, one, wanted, prompt in zip(
        ("context", "pos", "neg"), branched.sequences, branched.wanted, prompts, strict=True
    ):
        ids = torch.tensor([one.ids])
        image = encoder.sequences.images.tensors(family.images[0], prompt=prompt)
        seen = []
        hook = parts.blocks[0].register_forward_hook(lambda _, args, output, seen=seen: seen.append(output))
        family.model(input_ids=ids, attention_mask=torch.ones_like(ids), **image)
        hook.remove()
        states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        expected = states[0, list(wanted)].mean(0)
        torch.testing.assert_close(found[f"{branch}.{layer}"][0], expected, atol=1e-4, rtol=1e-4)
