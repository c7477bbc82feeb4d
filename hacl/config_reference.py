"""Makes the page docs/configuration.md from the dataclasses of the configuration."""

from __future__ import annotations

import json

from hacl.config import Config
from hacl.config_io import entries
from hacl.presets import PRESETS

HEAD = """# Configuration reference

Made from the dataclasses of `hacl/config.py` by `python -m hacl.config_reference > docs/configuration.md`, and what
`python train.py --help` prints. Every key can be given in a YAML file or as `section.key=value` on the command line.
An unknown key is an error. How values are merged is in [training.md](training.md#configuration).
"""


def reference() -> str:
    """The page as Markdown: a table per section, then what each preset changes."""
    sections: dict[str, list[str]] = {}
    for name, kind, default, text in entries(Config):
        if kind is None:
            head = ["", f"## {name}", "", f"{text[0].upper()}{text[1:]}.", ""]
            sections[name] = [*head, "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        else:
            row = f"| `{name}` | {_cell(kind)} | `{default}` | {_cell(text)} |"
            sections[name.rpartition(".")[0]].append(row)
    lines = [HEAD.rstrip()] + [line for section in sections.values() for line in section]
    lines += ["", "## Presets", "", "`model.preset` changes these defaults; the YAML file can change them back.", ""]
    lines += ["| preset | key | value |", "| --- | --- | --- |"]
    for preset, changes in PRESETS.items():
        lines += [f"| `{preset}` | `{key}` | `{json.dumps(value)}` |" for key, value in _flat(changes)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    found = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


if __name__ == "__main__":
    print(reference(), end="")
