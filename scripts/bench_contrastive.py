"""The contrastive loss beside open_clip's ClipLoss and a loop, and the memory of a training step with GradCache.

Losses, forward and backward, on the same random features:
  open_clip   ClipLoss of open_clip_torch on normalised features
  hacl        this project's loss without hallucinated captions, which is then the same loss
  hacl_hard   this project's loss with one hallucinated caption per image as hard negative
  loop, loop_hard  the same two, one image and one caption at a time, up to --loop-limit samples

Steps of a random pocket model, forward and backward without optimizer: the contrastive batch at once, and with
GradCache in chunks of --chunk samples.

Example:
  python scripts/bench_contrastive.py --out contrastive.json
  python scripts/bench_contrastive.py --batches 256,1024 --widths 64 --steps 32,64 --repeats 3

Errors are the largest absolute differences of the loss and of any gradient (images, captions, temperature) from
ClipLoss in fp64, beyond --fp64-limit samples from ClipLoss in fp32; for the *_hard losses from loop_hard in fp64. Times
are medians and quartiles of rounds that run the losses in turn, fewer where a point takes longer than --seconds. Peak
memory is what a fresh process adds to its memory while it runs once (allocated on a GPU, resident on a CPU), inputs not
counted. The JSON is written again after every point, so that what was measured stays when a run is stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

MIB = 2**20
PATTERN = ("red", "blue", "green", "yellow"), ("circle", "square", "triangle"), ("left", "right", "above", "below")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=numbers, default=[256, 1024, 4096, 16384], help="samples of the loss")
    parser.add_argument("--widths", type=numbers, default=[256, 1024], help="sizes of the contrastive space")
    parser.add_argument("--losses", type=lambda text: text.split(","), default=list(LOSSES), help="which (default all)")
    parser.add_argument("--loop-limit", type=int, default=1024, help="samples up to which the loops run (default 1024)")
    parser.add_argument("--fp64-limit", type=int, default=4096, help="samples up to which errors are against fp64")
    parser.add_argument("--steps", type=numbers, default=[16, 64, 256, 1024], help="contrastive batches of a step")
    parser.add_argument("--uncut-limit", type=int, default=256, help="samples up to which a step runs at once")
    parser.add_argument("--chunk", type=int, default=8, help="samples per chunk with GradCache (default 8)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds over all variants (default 7)")
    parser.add_argument("--seconds", type=float, default=60.0, help="no further round of a point after so long")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well as to the screen")
    parser.add_argument("--point", type=json.loads, default=None, help=argparse.SUPPRESS)  # what a child measures
    return parser.parse_args(argv)


# Losses


def draw_features(batch: int, width: int, *, seed: int, device: str, dtype=None) -> list:
    """Leaves: images (B, P), captions (B, P), hallucinated captions (B, P), log(1 / temperature) (1,)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(batch, width, generator=generator) for _ in range(3)]
    rows = [noise[0], noise[0] + 2 * noise[1], noise[0] + 2 * noise[2], torch.tensor([2.659])]
    return [x.to(device=device, dtype=dtype or torch.float32).requires_grad_() for x in rows]


def hacl(images_BP, captions_BP, hallucinated_BP, log_scale, *, hard: bool):
    import torch

    from hacl.losses.contrastive import contrastive_loss

    batch, device = len(images_BP), images_BP.device
    numbers = torch.arange(batch, device=device)
    wrong_BKP = hallucinated_BP[:, None][:, : int(hard)]
    loss, _ = contrastive_loss(
        images_BP,
        captions_BP[:, None],
        wrong_BKP,
        log_scale,
        image_mask_B=torch.ones(batch, dtype=torch.bool, device=device),
        caption_mask_BC=torch.ones(batch, 1, dtype=torch.bool, device=device),
        hallucinated_mask_BK=torch.ones(wrong_BKP.shape[:2], dtype=torch.bool, device=device),
        image_ids_B=numbers,
        caption_keys_BC=numbers[:, None],
        hallucinated_keys_BK=(numbers + batch)[:, None][:, : int(hard)],
    )
    return loss


def open_clip(images_BP, captions_BP, hallucinated_BP, log_scale):
    import torch.nn.functional as F
    from open_clip.loss import ClipLoss

    return ClipLoss()(F.normalize(images_BP, dim=-1), F.normalize(captions_BP, dim=-1), log_scale.exp())


def loop(images_BP, captions_BP, hallucinated_BP, log_scale, *, hard: bool):
    """HACL, section 3.2, one anchor at a time."""
    import torch
    import torch.nn.functional as F

    images, captions, wrong = (F.normalize(x, dim=-1) for x in (images_BP, captions_BP, hallucinated_BP))
    total, scale = 0.0, log_scale.exp()
    for i in range(len(images)):
        target = torch.tensor(i, device=images.device)
        candidates = torch.cat([captions, wrong[i : i + 1]]) if hard else captions
        total = total + F.cross_entropy(candidates @ images[i] * scale, target) / 2
        total = total + F.cross_entropy(images @ captions[i] * scale, target) / 2
    return total / len(images)


LOSSES = {
    "open_clip": open_clip,
    "hacl": functools.partial(hacl, hard=False),
    "hacl_hard": functools.partial(hacl, hard=True),
    "loop": functools.partial(loop, hard=False),
    "loop_hard": functools.partial(loop, hard=True),
}


def value_and_gradients(name: str, leaves: list) -> list:
    for leaf in leaves:
        leaf.grad = None
    loss = LOSSES[name](*leaves)
    loss.backward()
    return [loss.detach(), *(0 * leaf.detach() if leaf.grad is None else leaf.grad for leaf in leaves)]


def compare_losses(point: dict, arguments) -> dict:
    """name -> errors and times of every loss that runs at this size."""
    import torch

    draw = functools.partial(draw_features, point["batch"], point["width"], seed=arguments.seed, device=point["device"])
    within = point["batch"] <= arguments.loop_limit
    names = [name for name in arguments.losses if within or not name.startswith("loop")]
    references = {"": ("open_clip", torch.float64 if point["batch"] <= arguments.fp64_limit else torch.float32)}
    if within:
        references["_hard"] = ("loop_hard", torch.float64)
    expected = {kind: value_and_gradients(name, draw(dtype=dtype)) for kind, (name, dtype) in references.items()}
    leaves, rows = draw(), {name: {} for name in names}
    for name in names:
        kind = "_hard" if name.endswith("_hard") else ""
        if kind not in expected:
            continue
        found = value_and_gradients(name, leaves)
        errors = [float((x - y).abs().max()) for x, y in zip(found, expected[kind], strict=True)]
        rows[name].update(loss_error=errors[0], gradient_error=max(errors[1:]), reference=str(references[kind][1]))
        rows[name]["largest_gradient"] = max(float(x.abs().max()) for x in expected[kind][1:])
    calls = {name: functools.partial(value_and_gradients, name, leaves) for name in names}
    return add_times(rows, calls, point["device"], arguments)


# Training steps


def build_step(samples: int, *, chunk: int | None, device: str):
    """A function that runs forward and backward of one step over random captions of one grey image."""
    import tempfile

    import torch
    from PIL import Image

    from hacl.config import ObjectiveConfig
    from hacl.data.collate import PackedCollator
    from hacl.data.dataset import TrainingDataset
    from hacl.data.records import HallucinatedCaption, Record
    from hacl.data.templates import SequenceEncoder
    from hacl.models.pocket import pocket_model, pocket_processor
    from hacl.training.grad_cache import Window
    from hacl.training.objective import HaclModel

    objective = ObjectiveConfig(num_hallucinated=1, learn_temperature=True)
    encoder = SequenceEncoder(pocket_processor(), template="plain", prompt="", max_length=128, max_caption_length=64)

    def caption(number: int) -> str:
        words = [list_[number // 4**place % len(list_)] for place, list_ in enumerate(PATTERN)]
        return f"a {words[0]} {words[1]} {words[2]} of the {PATTERN[0][number // 64 % 4]} {PATTERN[1][number % 3]}"

    def record(number: int) -> Record:
        wrong = HallucinatedCaption(text=caption(number + 1), type="attribute", of=0)
        names = {"id": str(number), "image_id": str(number), "images": ("grey.png",)}
        texts = {"captions": (caption(number),), "hallucinated": (wrong,), "conversation": ()}
        return Record(**names, **texts, objects=None, extra={})

    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (128, 128), "grey").save(Path(folder) / "grey.png")
        records = [record(number) for number in range(samples)]
        dataset = TrainingDataset(records, encoder, image_root=Path(folder), objective=objective, seed=0)
        size, collate = chunk or samples, PackedCollator(encoder, objective)
        batches = [
            collate([dataset[i] for i in range(start, min(start + size, samples))]) for start in range(0, samples, size)
        ]
    model = HaclModel(pocket_model(0), objective)
    model.adapter.vision_tower.requires_grad_(False)
    model.to(device).train()

    def place(batch):
        return {name: tensor.to(device) for name, tensor in batch.items()}

    labels = sum(len(batch["label_target"]) for batch in batches)

    def step() -> list:
        model.zero_grad(set_to_none=True)
        window = Window(model, batches) if chunk else None
        if window is not None:
            window.open(place)
        total = torch.zeros((), device=device)
        for batch in batches:
            output = model(**place(batch), **({"feature_gradients": window.take()} if window else {}))
            loss = output.lm_sum / labels + output.contrastive / len(batches)
            loss.backward()
            total += loss.detach()
        return [total, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    return step


def compare_steps(point: dict, arguments) -> dict:
    """Time of a step with GradCache, and beside the uncut one where that runs; the largest differences of the two."""
    steps = {"grad_cache": build_step(point["samples"], chunk=arguments.chunk, device=point["device"])}
    if point["samples"] <= arguments.uncut_limit:
        steps["uncut"] = build_step(point["samples"], chunk=None, device=point["device"])
    found = {name: step() for name, step in steps.items()}
    rows = {name: {} for name in steps}
    if "uncut" in steps:
        pairs = [(float((x - y).abs().max()), float(y.abs().max())) for x, y in zip(*found.values(), strict=True)]
        rows["grad_cache"].update(loss_error=pairs[0][0], gradient_error=max(error for error, _ in pairs[1:]))
        rows["grad_cache"]["largest_gradient"] = max(largest for _, largest in pairs[1:])
    return add_times(rows, steps, point["device"], arguments)


# Measuring


def add_times(rows: dict, calls: dict, device: str, arguments) -> dict:
    """Seconds of every call, in rounds over all of them."""
    start = time.perf_counter()
    for done in range(arguments.repeats):
        if done and time.perf_counter() - start > arguments.seconds:
            break
        for name, call in calls.items():
            rows[name].setdefault("seconds", []).append(timed(call, device))
    return rows


def timed(call, device: str) -> float:
    import torch

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def memory_now(field: str) -> float:
    """MiB of this process: VmRSS, or VmHWM, its highest since `clear_refs` was written."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_mib(call, device: str) -> float:
    """What `call` adds at its peak to the memory in use before it."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = memory_now("VmRSS")
    call()
    return memory_now("VmHWM") - before


def measure_memory(point: dict, arguments) -> dict:
    if "loss" in point:
        warm = draw_features(8, point["width"], seed=arguments.seed, device=point["device"])
        value_and_gradients(point["loss"], warm)  # what libraries take once is not of the loss
        leaves = draw_features(point["batch"], point["width"], seed=arguments.seed, device=point["device"])
        return {"peak_mib": peak_mib(lambda: value_and_gradients(point["loss"], leaves), point["device"])}
    build_step(2, chunk=1, device=point["device"])()
    step = build_step(point["samples"], chunk=point["chunk"], device=point["device"])
    return {"peak_mib": peak_mib(step, point["device"])}


CHILDREN = {"losses": compare_losses, "steps": compare_steps, "memory": measure_memory}


def in_child(point: dict, argv: list[str]) -> dict:
    """Measure one point in a process of its own. Raises RuntimeError with its output."""
    command = [sys.executable, __file__, *argv, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(row: dict) -> dict:
    seconds = row.pop("seconds")
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {**row, "seconds_median": middle, "seconds_quartiles": [low, high], "rounds": len(seconds)}


def measure(arguments, argv: list[str]) -> None:
    import torch

    from hacl.models.identity import hardware

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "point")}
    result = {"settings": settings, "hardware": hardware(device), "rows": []}
    result["hardware"]["versions"]["open_clip_torch"] = version("open_clip_torch")

    def add(kind: str, point: dict, memory_of) -> None:
        for name, row in in_child({"kind": kind, "device": device, **point}, argv).items():
            peak = in_child({"kind": "memory", "device": device, **point, **memory_of(name)}, argv)
            result["rows"].append({**point, "name": name, **summary(row), **peak})
            print(show(result["rows"][-1]), flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for samples in arguments.steps:
        add("steps", {"samples": samples}, lambda name: {"chunk": arguments.chunk if name == "grad_cache" else None})
    for width in arguments.widths:
        for batch in arguments.batches:
            add("losses", {"batch": batch, "width": width}, lambda name: {"loss": name})


def show(row: dict) -> str:
    size = f"{row['batch']:>6} x {row['width']:<5}" if "batch" in row else f"{row['samples']:>6} step "
    errors = f"loss {row['loss_error']:.1e} gradient {row['gradient_error']:.1e}" if "loss_error" in row else ""
    low, high = row["seconds_quartiles"]
    return (
        f"{size} {row['name']:<11} {row['seconds_median']:>9.4f} s [{low:.4f}, {high:.4f}] "
        f"{row['peak_mib']:>8.0f} MiB  {errors}"
    )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(argv)
    if arguments.point is not None:
        import torch

        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        print(json.dumps(CHILDREN[arguments.point["kind"]](arguments.point, arguments)))
        return
    measure(arguments, argv)


if __name__ == "__main__":
    main()
