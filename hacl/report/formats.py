"""Tables of text as Markdown, LaTeX and HTML, and the frame of a self-contained page. Everything is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hacl.plain_text import markdown_row, one_line
from hacl.report.parts import STYLE

Rows = Sequence[Sequence[str]]
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def value_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """``0.812 [0.790, 0.831]``; fewer digits above ten; ``n/a`` for null."""
    if value is None:
        return "n/a"
    digits = 0 if float(value).is_integer() and abs(value) >= 10 else 3 if abs(value) < 10 else 1
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(LATEX.get(letter, letter) for letter in one_line(text))


def markdown_table(rows: Rows) -> str:
    """A pipe table; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"{markdown_row(line)}\n" for line in lines)


def latex_table(rows: Rows, caption: str = "") -> str:
    """A ``tabular`` with booktabs rules (``\\usepackage{booktabs}``); the first row is the head."""
    head, *body = [" & ".join(map(latex_escape, row)) + r" \\" for row in rows]
    note = "".join(f"% {line}\n" for line in caption.splitlines())
    columns = "l" + "r" * (len(rows[0]) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return note + "\n".join(lines) + "\n"


def html_table(rows: Rows, caption: str = "") -> str:
    """A table with header scopes; the first row is the head, the first column names its row."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in rows[0])
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(text)}</td>" for text in row[1:]) + "</tr>"
        for row in rows[1:]
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def html_page(title: str, body: Sequence[str]) -> str:
    """A page that makes no request: style and figures are inside it."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )
