"""The page: nothing from outside, and right in a real browser, on a phone and on a screen."""

import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from report_helper import browse, full_report

from sparqle_tvm.errors import MissingExtraError
from sparqle_tvm.report import pictures
from sparqle_tvm.report.document import Column, Document, Section, Table
from sparqle_tvm.report.html import to_html

MAX_BYTES = 5_000_000
# Stands before the page in a frame of the width wanted: a browser's window is never narrower than
# 500 pixels. The measures go to the frame's parent after fonts and pictures are in their places.
_MEASURE = """<script>
addEventListener("load", () => {
  const all = [...document.body.querySelectorAll("*")];
  const out = all.filter((e) => !e.closest(".table, svg, details")
    && e.getBoundingClientRect().right > innerWidth + 1).length;
  const seen = [...document.querySelectorAll("figure svg")].filter((e) => e.clientWidth);
  const page = document.documentElement;
  parent.document.title = JSON.stringify({inner: innerWidth, scroll: page.scrollWidth, out,
    height: page.scrollHeight, pictures: seen.map((e) => e.clientWidth)});
});
</script>"""


def framed(page: str, width: int, height: int) -> str:
    style = f"display: block; border: 0; width: {width}px; height: {height}px"
    inside = escape(page.replace("</body>", f"{_MEASURE}</body>"))
    return f'<body style="margin: 0"><iframe style="{style}" srcdoc="{inside}"></iframe>'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(full_report()), encoding="utf-8")
    return path


class Outline(HTMLParser):
    """Collects tags, ids and references."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.headings = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.headings += tag == "h2"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(page):
    text = page.read_text()
    assert len(text.encode()) < MAX_BYTES
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.headings == len(full_report().sections)
    assert len(outline.ids) == len(set(outline.ids))
    outside = [r for r in outline.references if not r.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    assert {r[1:] for r in outline.references if r.startswith("#")} <= set(outline.ids)
    assert not re.search(r"url\((?!#)|@import|<link|<script", text)
    for address in re.findall(r"https?://[^\"' <]+", text):
        assert address.startswith("http://www.w3.org/")  # names of XML dialects, not fetched


def test_colours_follow_the_page(page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.read_text(), re.S))
    used = set(re.findall(r"var\(--([a-z]+)\)", drawn))
    assert {"ink", "blue", "grid"} <= used
    assert used <= set(re.findall(r"--([a-z]+):", page.read_text()))
    assert "#000000" not in drawn


def test_same_report_same_page(page):
    (section,) = (s for s in full_report().sections if s.title == "MSB sparsity")
    small = replace(full_report(), sections=(section,))
    (shown,) = re.findall(r'<section>\n<h2 id="msb-sparsity">.*?</section>', to_html(small), re.S)
    assert shown in page.read_text()


def test_what_came_from_outside_is_escaped():
    bad = "<b onclick='x'>&"
    table = Table("t", bad, (Column("a", bad),), ({"a": bad},), bad)
    document = Document(bad, bad, (), (Section("s", (bad, table, replace(table, folded=True))),))
    assert "<b" not in to_html(document).split("<body>")[1].replace("<body", "")


@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(page, tmp_path, width):
    frame = tmp_path / "frame.html"
    frame.write_text(framed(page.read_text(), width, 900))
    shown = re.search(r"<title>({.*?})</title>", browse(frame, max(width, 500), 900, "--dump-dom"))
    found = json.loads(shown[1])
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["out"] == 0
    assert len(found["pictures"]) == len(full_report().pictures)  # one of two forms of each
    assert min(found["pictures"]) > 0.8 * min(width, 960)
    frame.write_text(framed(page.read_text(), width, found["height"]))
    shot = tmp_path / "page.png"
    browse(frame, max(width, 500), found["height"], f"--screenshot={shot}")
    image = imread(shot)[:, :width, :3]
    assert image.shape[:2] == (found["height"], width)
    ground = image[0, 0]
    marked = (np.abs(image - ground).max(axis=2) > 0.05).mean(axis=1)
    assert 0.02 < marked.mean() < 0.6
    # No screenful without anything on it.
    assert all(marked[top : top + 600].max() > 0.01 for top in range(0, len(marked) - 600, 300))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparqle-tvm\[plot\]'"):
        to_html(full_report())
