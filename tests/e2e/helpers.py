"""What end-to-end tests read from a run folder, and how they change records and checkpoints."""

import json
import shutil


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def refuses(command, capsys, *overrides):
    assert command(*overrides) == 2
    return capsys.readouterr().err


def edited(records, folder, change):
    """A copy of the records with one line changed."""
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    change(lines)
    shutil.copytree(records.parent / "images", folder / "images")
    path = folder / "edited.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def replace_weights(checkpoint, tensors):
    """Another set of weights in a checkpoint that still verifies."""
    from safetensors.torch import save_file

    from hacl.training.manifest import MANIFEST, _sha256

    file = checkpoint / "trained.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    content = json.loads((checkpoint / MANIFEST).read_text())
    content["files"][file.name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    (checkpoint / MANIFEST).write_text(json.dumps(content))
