"""One table of many evaluated runs: CSV, JSON, Markdown, LaTeX rows and an HTML page with plots.

python scripts/table.py control=runs/a hacl=runs/b --metrics accuracy f1 --out tables

A run is a folder of scripts/evaluate.py or a report of scripts/score.py. Reports of one benchmark that were scored in
different ways (dialect, parser, split, references, scorer version) are refused, not mixed.
"""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    from hacl.report.exports import FORMATS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]PATH", help="run folder or report file, with a name for it")
    parser.add_argument("--out", required=True, help="folder for table.csv, .json, .md, .tex and .html")
    parser.add_argument(
        "--metrics", nargs="+", default=[], help="which metrics, in this order (default: all but counts)"
    )
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="default: all")
    parser.add_argument("--title", default="Evaluation", help="of the page (default: %(default)s)")
    options = parser.parse_args(arguments)

    from hacl.report.exports import as_markdown, build_table, export_reports, read_runs

    try:
        paths = export_reports(
            options.runs, options.out, metrics=options.metrics, formats=options.formats, title=options.title
        )
        print(as_markdown(build_table(read_runs(options.runs), metrics=options.metrics)))
    except (ValueError, OSError) as error:
        print(f"table: {error}", file=sys.stderr)
        return 2
    print("written: " + ", ".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
