"""Ask a model about images with and without steering, side by side, on a page in the browser.

  python scripts/playground.py --model exported/model --steer mean=runs/pope_mean --steer flexac=runs/flexac
  python scripts/playground.py --model exported/model --artefacts runs --records data/test.jsonl --objects words.json
  python scripts/playground.py --model hub:owner/name --revision main --steer runs/caption_l2s --port 7861

The page offers every artefact (a folder of `steer.py fit`, `steer.py flexac`, or a comparison's steerers), shows both
answers with the objects they name marked, and says what the steering did inside. Images of --records are examples whose
objects are known: named objects that are not in the image are marked apart. It listens on this machine only, asks
nothing of the network, and needs Gradio (docs/playground.md says how to install it).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="exported or stock folder, checkpoint, LoRA adapter, hub:owner/name@REVISION",
    )
    add("--revision", help="of a hub: model; it must have been downloaded before")
    add("--base", help="folder of the base model of a checkpoint or adapter, if it moved")
    add("--steer", action="append", default=[], metavar="[NAME=]FOLDER", help="a steering artefact; repeatable")
    add(
        "--artefacts",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="offer all artefacts below; repeatable",
    )
    add("--records", type=Path, metavar="FILE", help="records whose images are offered as examples")
    add("--images", type=Path, metavar="DIR", help="folder that their paths start from (default: that of the records)")
    add("--examples", type=int, default=12, metavar="N", help="images of --records to offer; default: %(default)s")
    add("--objects", default="coco", metavar="coco|pocket|FILE",
        help="words for objects: built in, or a JSON file {word: object}; default: %(default)s")  # fmt: skip
    add("--prompt", help="in the box at first (default: what the model was tuned with)")
    add("--template", choices=("auto", "plain", "chat"), default="auto", help="default: as the model was tuned")
    add("--dial", type=float, default=2.0, help="where the dial and its sweep end; default: %(default)s")
    add("--max-new-tokens", type=int, default=64, help="at first; default: %(default)s")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: %(default)s")
    add("--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine only")
    add("--port", type=int, help="default: a free one from 7860 on")
    options = parser.parse_args(argv)
    if not options.dial > 0:
        parser.error(f"--dial {options.dial}: a positive number; the dial goes from minus to plus that")
    return options


def coco() -> Mapping[str, str | None]:
    from hacl.evaluation.coco_objects import coco_vocabulary

    return coco_vocabulary()


def pocket() -> Mapping[str, str | None]:
    from hacl.pocket.world import object_vocabulary

    return object_vocabulary()


VOCABULARIES: dict[str, Callable[[], Mapping[str, str | None]]] = {"coco": coco, "pocket": pocket}


def serve(options: argparse.Namespace) -> AbstractContextManager[str]:
    """The page as a context whose value is its address. Raises ValueError or OSError for options that do not fit."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("Gradio is not installed; docs/playground.md says how")
    from hacl.evaluation.chair import MentionExtractor
    from hacl.playground.artefacts import collect
    from hacl.playground.marking import read_vocabulary
    from hacl.playground.pictures import Pictures

    artefacts, skipped = collect(options.steer, options.artefacts)
    for sentence in skipped:
        print(f"playground: left out: {sentence}", file=sys.stderr)
    words = VOCABULARIES.get(options.objects)
    extractor = MentionExtractor(words() if words else read_vocabulary(options.objects))
    pictures = Pictures()
    if options.records is not None:
        pictures = Pictures.read(options.records, options.images, options.examples)

    from hacl.evaluation.runner.ranks import local_device
    from hacl.playground.answers import Speaker, open_source
    from hacl.playground.app import serving
    from hacl.playground.page import Page

    source = open_source(options.model, base=options.base, revision=options.revision)
    template = (source.template or "plain") if options.template == "auto" else options.template
    model = source.load(dtype=options.dtype, device=local_device(options.device))
    page = Page(
        Speaker(model, source.processor(), template), artefacts, extractor, pictures,
        prompt=options.prompt if options.prompt is not None else source.prompt or "Describe this image.",
        dial=options.dial, title=f"{source.path} ({source.fingerprint}), template {template}",
        max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    return serving(page, host=options.host, port=options.port)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    os.environ.setdefault(
        "HF_HUB_OFFLINE", "1"
    )  # before transformers is imported: the page asks nothing of the network
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that uploads are removed
    try:
        with serve(options) as address:
            print(f"playground: {address} (stop with Ctrl-C)", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    except (ValueError, OSError) as error:
        print(f"playground: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
