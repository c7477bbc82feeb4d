"""Promises about names and texts that leave the project: in pages, cards, tables and file names they stay text."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image

from hacl.config import Config
from hacl.data.records import HallucinatedCaption, Record
from hacl.evaluation.runner import hub
from hacl.hallucinate.quality_page import page
from hacl.plain_text import file_part, markdown, markdown_row, one_line
from hacl.report.exports import export_reports
from hacl.report.formats import html_page, html_table, latex_escape, latex_table, markdown_table
from hacl.report.page import build_report
from hacl.report.parts import embed_image
from hacl.training.card import model_card
from tests.unit.test_report import make_results
from tests.unit.test_report_exports import report, save

EVIL = "</title>\"'><script>alert(1)</script><img src=x onerror=alert(2)>\n---\n| [x](javascript:alert(3)) \\| &lt;"
HARMLESS = {
    "html", "head", "body", "meta", "title", "style", "main", "h1", "h2", "h3", "p", "ul", "li", "strong", "span",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "div", "figure", "figcaption", "img", "article",
    "dl", "dt", "dd", "mark", "details", "summary", "pre", "b", "br", "small",
}  # fmt: skip


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser finds them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.text += data


def assert_harmless(text):
    """Nothing that could run or load, whatever the texts say; and the page forbids it once more."""
    found = Reader(text)
    assert set(found.tags) <= HARMLESS, set(found.tags) - HARMLESS
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/") for _, name, value in found.attributes if name in ("src", "href"))
    assert any("default-src 'none'" in value for _, name, value in found.attributes if name == "content")
    return found


def poisoned(value, keep):
    """The same structure with EVIL after every text, apart from those that have a meaning of their own."""
    if isinstance(value, dict):
        return {key: inner if key in keep else poisoned(inner, keep) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, keep) for inner in value]
    return value + EVIL if isinstance(value, str) else value


def test_no_text_of_a_report_becomes_markup(tmp_path):
    keep = ("better", "format", "image", "items", "metrics", "key", "log", "points", "splits", "name")
    results = poisoned(make_results(), (*keep, "control", "arm"))
    for arm in results["arms"]:
        arm["name"] += EVIL
        arm["runs"][0]["base"] = 0
    results["control"] += EVIL
    results["splits"] = [{"name": "seen", "label": EVIL, "description": EVIL}]
    for caption in results["examples"][0]["captions"]:
        caption["arm"] += EVIL
    found = assert_harmless(build_report(results, tmp_path, draws=20).read_text(encoding="utf-8"))
    assert found.text.count("<script>alert(1)</script>") > 10


@pytest.mark.parametrize(
    "source",
    ['data:image/png;base64,AA" onerror="alert(1)', "data:image/svg+xml;base64,PHN2Zz4=", "data:text/html,<script>",
     "data:image/png;base64,AA'>", "data:image/png,<x>", "data:image/png;base64,"],
)  # fmt: skip
def test_an_address_of_an_example_is_a_bitmap_or_refused(source, tmp_path):
    with pytest.raises(ValueError, match="no data address"):
        embed_image(source, tmp_path)


def test_an_example_that_is_no_bitmap_is_not_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(OSError, match="cannot identify"):
        embed_image("x.png", tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "y.png")
    assert embed_image("y.png", tmp_path).startswith("data:image/png;base64,")


def test_pages_of_frames_and_tables_escape_titles_cells_and_captions():
    assert_harmless(html_page(EVIL, [html_table([[EVIL, "b"], [EVIL, EVIL]], EVIL)]))


def test_the_page_of_hallucinated_captions_escapes_records(monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.quality_page.lines", lambda report: [(EVIL, EVIL)])
    made = HallucinatedCaption(EVIL, EVIL, (3, 9), of=0)
    text = page(None, [(Record(EVIL, captions=(EVIL, EVIL), hallucinated=(made,)), made)], title=EVIL, image_root=None)
    assert_harmless(text)


def test_the_table_of_runs_stays_one_row_per_run_in_every_format(tmp_path):
    content = report(0.6, parser=EVIL)
    content["warnings"] = [EVIL]
    content["metrics"][EVIL] = 0.5
    path = save(tmp_path, "run/report.json", content)
    name = EVIL.replace("/", " ").replace("=", "-")  # which a name on the command line cannot hold
    paths = {path.suffix: path for path in export_reports([f"{name}={path}"], tmp_path / "out")}
    assert_harmless(paths[".html"].read_text(encoding="utf-8"))
    lines = [line for line in paths[".md"].read_text(encoding="utf-8").splitlines() if line]
    assert not re.search(r"<(?!br)", paths[".md"].read_text(encoding="utf-8")) and "](" not in "".join(lines)
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3 and len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1
    body = paths[".tex"].read_text(encoding="utf-8").split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count(r"\\") == 1, "one row"
    assert json.loads(paths[".json"].read_text())["values"]


def test_latex_commands_in_a_name_are_printed():
    text = latex_table([["a", "b"], [r"\input{/etc/passwd}", "\\write18{x}\n%"]], "a\n\\input{x}")
    assert r"\input{/" not in text.split("\\toprule")[1] and r"\write18" not in text
    assert text.startswith("% a\n% \\input{x}\n") and latex_escape("a\r\nb\x00c") == "a b c"


def test_markdown_shows_text_as_text():
    assert markdown("a|b\n<script>\\| [x](y)\x1b[31m") == r"a\|b &lt;script>\\\| [x]\(y) [31m"
    assert one_line(" a\u2028b\tc\x00 ") == "a b c"
    assert markdown_row(["a", 1, None]) == "| a | 1 | None |"
    assert markdown_table([["h"], ["x\r\n| y"]]).splitlines() == ["| h |", "| --- |", r"| x \| y |"]


@pytest.mark.parametrize("name", [EVIL, "x\n---\nlicense: mit\n---\n", "a | b", "-->", "{{ evil }}"])
def test_the_front_matter_and_tables_of_a_model_card_are_the_projects_own(name):
    import yaml

    config = Config()
    config.model.path, config.data.path = name, [f"/data/{name}"]
    manifest = {
        "base": {"fingerprint": name}, "data": name, "ranks": 1, "step": 2, "versions": {name: name},
    }  # fmt: skip
    text = model_card(config, manifest, {name: 0.5, "fine": 1})
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags"}
    assert "<" not in body.replace("&lt;", "") and "](" not in body
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3 for line in table), table
    assert [line for line in body.splitlines() if line.startswith("# ")][0].endswith("contrastive learning")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-rf",
        "_x",
        "a/b",
        "a\\b",
        "a b",
        "a\nb",
        "a\0b",
        "C:",
        "x" * 65,
        "\u202egnp.exe",
        "ä",
        "a*",
    ],
)
def test_a_name_that_cannot_be_part_of_a_file_name_is_refused(name):
    with pytest.raises(ValueError, match="the kind .* cannot be part of a file name"):
        file_part(name, "the kind")


@pytest.mark.parametrize("name", ["random", "code_reasoning", "a-b.c", "9"])
def test_an_ordinary_name_is_kept(name):
    assert file_part(name, "the kind") == name


@pytest.mark.parametrize("category", ["../x", ".x", "a/b", "x" * 300, "a\nb"])
def test_a_category_of_a_table_on_the_hub_is_no_path(tmp_path, category):
    image = SimpleNamespace(convert=lambda mode: SimpleNamespace(save=lambda path: None))
    row = {"question_id": "1", "question": "q", "answer": "yes", "image_source": "s", "image": image}
    (tmp_path / "images").mkdir()
    for write in (hub._pope, hub._mme):
        with pytest.raises(ValueError, match="cannot be part of a file name"):
            write([row | {"category": category}], tmp_path)


def test_names_of_images_from_the_hub_stay_below_the_folder(tmp_path):
    row = {"question_id": "1", "question": "q", "answer": "yes", "category": "random", "image": None}
    for source in ("../x", "/x", "a/../../x", "C:x"):
        with pytest.raises(ValueError, match="image path"):
            hub._pope([row | {"image_source": source}], tmp_path)
