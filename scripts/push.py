"""Put an exported model on the Hugging Face Hub: model, processor, card, heads. Private unless --public is given.

example:
  python scripts/push.py exports/stage1 --to my-name/llava-hacl-stage1

Log in first (`hf auth login`, or HF_TOKEN in the environment). What is uploaded is listed and asked for; --yes answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that scripts/export.py wrote")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository; made if it does not exist")
    parser.add_argument("--public", action="store_true", help="a new repository may be seen by anyone")
    parser.add_argument("--branch", help="default: the main branch")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    from hacl.training.push import check, push_folder

    try:
        check(options.folder, options.to)
        files = sorted(path for path in options.folder.rglob("*") if path.is_file())
        for path in files:
            print(f"{path.stat().st_size:>14,}  {path.relative_to(options.folder)}")
        seen = "public" if options.public else "private"
        if not options.yes and input(f"upload {len(files)} files to {options.to} ({seen}) [y/N]? ").lower() != "y":
            print("nothing was uploaded")
            return 1
        print(push_folder(options.folder, options.to, public=options.public, branch=options.branch))
    except EOFError:
        print("push: no answer; give --yes", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"push: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
