"""The command line of `scripts/compare.py`: sub-commands and their options, also from a YAML file. No torch here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hacl.options_file import read_options_file

DESCRIPTION = """Compare an original model with its tuned version: concepts, shift vectors, training-free recovery.

  python scripts/compare.py --original A --tuned B --records R.jsonl --image-root IMAGES --out OUT

does everything and ends with OUT/report.html. B is a model folder, a checkpoint or run of train.py, or a LoRA adapter
over A (one load serves both). What OUT holds already is not computed again. Each step is a sub-command of its own:

  run          all of it (the default)
  capture      hidden states of one model -> feature store
  inspect      what a feature store, dictionary, shift vectors or steering artefact holds
  concepts     learn and ground concepts of one feature store
  vectors      shift vectors between two feature stores
  recover      concept-level recovery with its controls, between two feature stores
  behaviour    fit interventions and measure how much behaviour they recover
  difference   steer by the difference of two sets of samples, with targetedness
  drift        concepts over the checkpoints of one run
  report       write the page again from the files in OUT
  import-xlvlms  a feature file of XL-VLMs -> feature store
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments; without a sub-command, those of `run`.

    Raises:
        SystemExit: wrong arguments (status 2), or help.
    """
    argv = list(argv)
    commands = COMMANDS
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv.insert(0, "run")
    parser = argparse.ArgumentParser(
        prog="compare.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, groups) in commands.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--config", type=Path, help="YAML file of options by their long names; the command line wins")
        for group in groups:
            group(sub)
    return read_options_file(parser, subparsers.choices, argv)


def layer(text: str) -> int | str:
    """A layer as capture takes it: an integer, or a name."""
    return int(text) if text.lstrip("-").isdigit() else text


def _two_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add("--original", required=True, help="folder of the original (exported or stock) model, or hub:owner/name@COMMIT")
    add("--tuned", required=True, help="folder, checkpoint or run of train.py, or LoRA adapter")
    add("--base", help="base model of the checkpoint or adapter, if it moved")
    _device(add)


def _one_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, help="folder, checkpoint or run of train.py, LoRA adapter, or hub:owner/name@COMMIT")
    add("--base", help="base model of a checkpoint or adapter, if it moved")
    _device(add)


def _device(add) -> None:
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU, else float32")


def _data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--records", required=True, help="JSON or JSONL records: images with captions, or with questions and answers")
    add("--image-root", required=True, help="folder that image paths are relative to")
    add("--prompt", help="what the models are asked (default: what the tuned model was tuned with)")
    add("--template", choices=("plain", "chat"), help="default: as the tuned model was tuned, else plain")
    add("--captions", type=int, default=1, help="texts per record (default: %(default)s)")
    add("--limit", type=int, help="only the first N records")


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder to write; an interrupted run is taken up there")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layers", type=layer, nargs="+", default=[],
        help="blocks from 0 (negative from the end), ranges as 2-5, embed, final_norm, all (default: four blocks "
        "spread over the decoder, and final_norm)",
    )  # fmt: skip


def _capture(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("capture").add_argument
    add(
        "--select", nargs="+", default=["mean_generated"],
        help="which states: mean_generated, last_prompt, first_generated, mean_image, predicts:WORD, at:WORD, "
        "predicts:@CLASS, index:N, all (default: mean_generated)",
    )  # fmt: skip
    add(
        "--mode", choices=("teacher_forced", "free"), default="teacher_forced",
        help="teacher_forced: both models read the same text, so that a shift is one of weights; free: each writes its "
        "own, as XL-VLMs does (default: %(default)s)",
    )  # fmt: skip


def _batches(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch-size", type=int, default=16, help="default: %(default)s")
    add("--max-new-tokens", type=int, default=64, help="of texts that a model writes (default: %(default)s)")


def _answer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--answer", choices=("reference", "original", "tuned"), default="reference",
        help="the text both models read: the record's, or what one of them writes (default: %(default)s)",
    )  # fmt: skip


def _stores(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("feature stores").add_argument
    add("--original", required=True, help="feature store of the original model")
    add("--tuned", required=True, help="feature store of the tuned model, same samples and selectors")
    _place(parser)
    parser.add_argument("--force", action="store_true", help="join stores whose templates or tokenizers differ")


def _place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", type=layer, required=True, help="one stored layer")
    parser.add_argument("--selector", help="one stored selector (default: the only one)")


def _concepts(parser: argparse.ArgumentParser) -> None:
    from hacl.representations.dictionaries import METHODS

    add = parser.add_argument_group("concepts").add_argument
    add("-k", "--concepts", type=int, default=20, help="how many (default: %(default)s, as the paper)")
    add("--method", choices=METHODS, default="kmeans", help="default: %(default)s, as the paper")
    add(
        "--words",
        choices=("english", "neutral", "none"),
        default="english",
        help="tokens that count as words: listed English ones, any of letters, or none (default: %(default)s)",
    )


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def _shifts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("shift vectors and recovery").add_argument
    add("--aggregate", choices=("mean", "median", "trimmed"), default="mean", help="default: %(default)s")
    add("--min-size", type=int, default=5, help="smaller concepts get no vector (default: %(default)s)")
    add("--bootstrap", type=int, default=500, help="draws of images per interval (default: %(default)s)")


def _recovery(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("concept-level recovery").add_argument
    add("--holdout", type=float, default=0.5, help="share of images held out (default: %(default)s)")
    add("--splits", type=int, default=5, help="random splits (default: %(default)s)")
    add("--controls", type=int, default=200, help="random directions (default: %(default)s)")
    add("--match", choices=("assignment", "nearest"), default="assignment", help="default: %(default)s, as upstream")
    add("--match-centred", action="store_true", help="take the mean state off before concepts are matched")
    add("--mas", type=int, default=50, help="most activating samples per concept (default: %(default)s)")
    add("--parity", action="store_true", help="add upstream's normalised columns")


def _behaviour(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("behaviour-level recovery").add_argument
    add("--behaviour-layers", type=layer, nargs="+", default=[],
        help="layers to steer at, each alone, and all blocks together (default: the captured blocks)")  # fmt: skip
    add("--behaviour-concepts", type=int, default=8, help="per layer, of token states (default: %(default)s)")
    add("--alphas", type=float, nargs="+", default=[0.25, 0.5, 1.0, 1.5, 2.0], help="default: 0.25 0.5 1 1.5 2")
    add("--policies", nargs="+", default=["last-1", "all"], help="positions that are steered, chosen from on "
        "validation: last-1 (the last of the prompt and all that is written), all, prompt, generated, text, image "
        "(default: last-1 all)")  # fmt: skip
    add("--position", choices=("answer", "last_prompt", "all"), default="answer",
        help="states that the shifts are fitted on (default: %(default)s)")  # fmt: skip
    add("--rank", type=int, default=16, help="of the low-rank map, the upper reference (default: %(default)s)")
    add("--fit-share", type=float, default=0.5, help="share of images to fit on (default: %(default)s); of the rest, "
        "half choose the setting and half confirm it")  # fmt: skip
    add("--random-controls", type=int, default=3, help="random directions (default: %(default)s)")
    add("--vocabulary", metavar="coco|pocket|FILE",
        help="words of each object for CHAIR and POPE, where records hold objects: a built-in list, or JSON "
        "{word: object}")  # fmt: skip
    add(
        "--styles", nargs="+", default=[],
        help="count the words of these in captions: colour, place, sentiment, gender_neutral, or a word class such as "
        "positions",
    )  # fmt: skip
    add("--pope-images", type=int, default=0,
        help="ask POPE questions on this many of the images that confirm (default: none)")  # fmt: skip
    add("--outside", help="records outside the domain of the tuning: replies to them should not change")
    add("--outside-root", help="their image folder (default: --image-root)")
    add("--measure", nargs="+", choices=("chosen", "method", "control"), default=["chosen", "method", "control"],
        help="what is generated with (default: all three; chosen alone is the cheapest)")  # fmt: skip
    add("--gate", action="store_true", help="exit with status 1 where a control recovers as much as the method")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-behaviour", action="store_true", help="representations only: nothing is generated")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and at what size, and end")


def _adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answers", help="JSON {sample id: text} to read instead of the records' texts")


def _inspected(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, help="folders")


def _features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--features", required=True, help="feature store")
    _place(parser)


def _difference(parser: argparse.ArgumentParser) -> None:
    sets = parser.add_mutually_exclusive_group(required=True)
    sets.add_argument("--style", help="captions with the words of a style against captions without: colour, place, "
        "sentiment, positive, negative, gender_neutral")  # fmt: skip
    sets.add_argument("--answer", nargs=2, metavar=("FROM", "TO"), help="samples answered FROM, samples answered TO")
    sets.add_argument("--answer-type", nargs=2, metavar=("FROM", "TO"), help="two of yes/no, number, other")
    add = parser.add_argument_group("vectors").add_argument
    add("--layer", type=int, required=True, help="block to read and to steer at")
    add("--alphas", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="strengths (default: 0.5 1 2)")
    add("-k", "--concepts", type=int, default=5, help="of each side, for fine vectors (default: %(default)s)")
    add(
        "--select-by", choices=("words", "effect"), default="words", help="how fine vectors are chosen (default: words)"
    )
    add("--policy", default="all", help="positions that are steered (default: %(default)s)")
    add("--fit-share", type=float, default=0.5, help="share of images that vectors are made of (default: %(default)s)")
    add("--outside", help="records outside the domain: replies to them should not change")
    add("--outside-root", help="their image folder (default: --image-root)")
    add("--batch-size", type=int, default=16, help="default: %(default)s")
    add("--max-new-tokens", type=int, default=32, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")


def _checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", action="append", required=True, metavar="[NAME=]PATH",
        help="feature stores or model folders, the first being the reference; repeatable, in order",
    )  # fmt: skip
    parser.add_argument("--records", help="for models: records to capture on")
    parser.add_argument("--image-root", help="their image folder")
    parser.add_argument("--prompt", default="", help="what the models are asked")
    parser.add_argument("--template", choices=("plain", "chat"), default="plain", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="only the first N records")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--layer", type=layer, required=True, help="the layer to follow")
    parser.add_argument("--selector", default="mean_generated", help="default: %(default)s")
    _device(parser.add_argument)


def _upstream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help=".pth file of save_features.py; read without running any code in it")
    parser.add_argument("--keep-masked", action="store_true", help="keep samples in which the word was not found")


def _made(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder of a comparison")


COMMANDS: dict[str, tuple[str, tuple]] = {
    "run": (
        "capture, analyse, recover and report",
        (_two_models, _data, _layers, _capture, _batches, _answer, _concepts, _seed, _shifts, _recovery, _behaviour,
         _run, _out),
    ),
    "capture": (
        "hidden states of one model into a feature store",
        (_one_model, _data, _layers, _capture, _batches, _adapter, _out),
    ),
    "inspect": ("what a feature store, dictionary, shift vectors or steering artefact holds", (_inspected,)),
    "concepts": ("learn and ground the concepts of one feature store", (_features, _concepts, _seed, _out)),
    "vectors": ("shift vectors between two feature stores", (_stores, _concepts, _seed, _shifts, _out)),
    "recover": (
        "concepts, shift vectors and held-out recovery between two feature stores",
        (_stores, _concepts, _seed, _shifts, _recovery, _out),
    ),
    "behaviour": (
        "fit interventions on the original and measure how much of the tuned behaviour they recover",
        (_two_models, _data, _layers, _batches, _answer, _seed, _behaviour, _out),
    ),
    "difference": (
        "steer one model by the difference of two sets of samples, and measure how targeted that is",
        (_one_model, _data, _difference, _out),
    ),
    "drift": ("concepts over the checkpoints of one run", (_checkpoints, _concepts, _seed, _out)),
    "report": ("write report.html again from the files of a comparison", (_made,)),
    "import-xlvlms": ("a feature file of XL-VLMs into a feature store", (_upstream, _out)),
}  # fmt: skip
