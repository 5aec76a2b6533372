"""The site of docs/: built strictly, whole in itself, with nothing from another host."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from bandpo.cli import main
from bandpo.config.composition import compose
from bandpo.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
# Tags that load something, and the attribute that says what.
LOADING = {"img": "src", "script": "src", "iframe": "src", "source": "srcset", "link": "href"}
CONTENT = re.compile(r"<article.*?</article>", re.DOTALL)
# HTML, MathML and SVG that pages are made of: anything else was meant as text, such as <model>.
TAGS = (
    "a article aside b blockquote br button circle code dd del details div dl dt em fieldset form "
    "g h1 h2 h3 h4 h5 h6 hr i img input ins kbd label li line math mfrac mi mn mo mover mpadded "
    "mphantom mrow ms mspace msqrt mroot mstyle msub msubsup msup mtable mtd mtext mtr munder "
    "munderover nav ol p path picture pre rect s samp section small source span strong sub summary "
    "sup svg table tbody td text tfoot th thead time tr u ul var"
)


class Page(HTMLParser):
    """What a page links to, loads and can be linked at, and the tags of its text."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if found.get(LOADING.get(tag, "")) and found.get("rel") != "canonical":
            self.loaded.append(found[LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page by its file, but for the one of unknown addresses, whose links are absolute."""
    files = (path for path in site.rglob("*.html") if path.name != "404.html")
    return {path: Page(path.read_text(encoding="utf-8")) for path in files}


def is_outside(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def test_every_link_leads_somewhere(pages):
    @cache
    def anchors(path: Path) -> set[str]:
        return pages[path].anchors if path in pages else set()

    broken = []
    for path, page in pages.items():
        for link in {link for link in (*page.links, *page.loaded) if not is_outside(link)}:
            place, _, anchor = link.partition("#")
            target = (path.parent / unquote(place)).resolve() if place else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists() or (anchor and unquote(anchor) not in anchors(target)):
                broken.append(f"{path.name}: {link}")
    assert len(pages) > 40 and broken == []


def test_nothing_is_loaded_from_another_host(site, pages):
    loaded = [link for page in pages.values() for link in page.loaded]
    assert [link for link in loaded if is_outside(link) and not link.startswith("data:")] == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert len(styles) > 2
    assert [
        url for style in styles for url in re.findall(r"url\(\s*[\"']?(?:https?:)?//", style)
    ] == []


def test_the_search_needs_no_server(site):
    script = (site / "search/search_index.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("var __index = "))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"index.html", "metrics.html", "api/loss.html", "cli.html"} <= found
    assert not any(place.startswith("repository/tests") for place in found)
    assert "IFrameWorker" in (site / "assets/iframe-worker.js").read_text(encoding="utf-8")


def test_what_looks_like_a_tag_is_text(pages):
    wrong = {
        f"{path.name}: <{tag}>"
        for path in pages
        for article in CONTENT.findall(path.read_text(encoding="utf-8"))
        for tag in re.findall(r"<([a-zA-Z][\w-]*)", article)
        if tag not in TAGS.split()
    }
    assert wrong == set()


def test_tables_and_fences_are_rendered(pages):
    """A table or fence that Markdown did not see is left as it was written."""
    wrong = []
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for article in CONTENT.findall(text):
            plain = re.sub(r"<(pre|code|math)\b.*?</\1>", "", article, flags=re.DOTALL)
            if re.search(
                r"\|\s*-{3}|```|^\s*\|.*\|\s*$|\*\*|\]\(", re.sub(r"<[^>]+>", "", plain), re.M
            ):
                wrong.append(path.name)
    assert wrong == []


def test_the_api_pages_are_filled(site):
    text = (site / "api/loss.html").read_text(encoding="utf-8")
    assert "The extreme ratios of a token over all policies" in text
    assert ":::" not in text


def test_the_commands_of_the_start_page_are_true(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    quickstart, *others = block.splitlines()
    assert quickstart.split("  ")[0] in (ROOT / "README.md").read_text(encoding="utf-8")
    explain, train = (shlex.split(line.split("  #")[0])[1:] for line in others)
    assert main(explain) == 0
    assert "band_kl" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_problems.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    assert compose("train", train[1:], Config).data.train == "my_problems.jsonl"
