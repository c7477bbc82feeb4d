"""Arguments that the commands over whole files of records share: what to read, and how."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Files, images, the configuration whose limits count, workers, and where the report goes."""
    add = parser.add_argument
    add("files", nargs="+", type=Path, help=".jsonl files or .json lists of records")
    add("--images", type=Path, metavar="FOLDER", help="image root; every image is decoded")
    add("--config", type=Path, help="YAML of a run: its model's processor, template and limits")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override; repeatable")
    add("--workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--json", type=Path, metavar="FILE", help="write the whole report there")


def check_reading_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, *folders: Path | None
) -> None:
    """End the command where a folder of images (``folders``: others than ``--images``) or ``--workers`` cannot be."""
    for folder in (arguments.images, *folders):
        if folder is not None and not folder.is_dir():
            parser.error(f"--images {folder}: no such folder")
    if arguments.workers is not None and arguments.workers < 1:
        parser.error("--workers must be at least 1")
