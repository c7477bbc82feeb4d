"""Open an exported folder with stock `transformers` classes and compare it with a probe; prints one JSON line.

Run as a program of its own (`python -m hacl.training.reload_check FOLDER PROBE`), so that nothing of the training
process can help. Imports nothing else of this project.
"""

import json
import sys


def main(folder: str, probe_path: str) -> dict:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    probe = load_file(probe_path)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype="auto", output_loading_info=True, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(folder)
    model.eval()
    inputs = {name: tensor for name, tensor in probe.items() if name not in ("logits", "tokens")}
    with torch.no_grad():
        logits = model(**inputs).logits.float()
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    scale = float(probe["logits"].abs().max())
    precision = 1e-5 if model.dtype == torch.float32 else 1e-2
    return {
        "class": type(model).__name__,
        "processor": type(processor).__name__,
        "chat_template": bool(getattr(processor, "chat_template", None)),
        "dtype": str(model.dtype),
        "unexpected_keys": sorted(info["unexpected_keys"]),
        "missing_keys": sorted(info["missing_keys"]),
        "max_logit_difference": float((logits - probe["logits"]).abs().max()),
        "tolerance": precision * max(scale, 1.0),
        "same_tokens": bool(torch.equal(tokens, probe["tokens"])),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3])))
