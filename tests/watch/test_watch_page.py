"""The page in a real browser: it draws, compares, follows a run, and executes nothing."""

import json
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM, chromium
from eval_fakes import run as evaluated
from interruptible import interruptible
from watched_runs import line, write_lines, write_run

from bandpo.evaluation.report import write_report
from bandpo.evaluation.summary import write_summaries
from bandpo.watch.api import Api
from bandpo.watch.runs import Library
from bandpo.watch.server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium"),
]
VIEWS = ("curves", "clipping", "samples", "problems", "settings", "log")
STEPS = 1500
# The lowest contrast of a text on what is behind it, and the text.
CONTRAST = """(() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const c = canvas.getContext("2d", {willReadFrequently: true});
  const rgb = (colours) => {
    c.clearRect(0, 0, 1, 1);
    for (const one of colours) { c.fillStyle = one; c.fillRect(0, 0, 1, 1); }
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colours) => {
    const [r, g, b] = rgb(colours).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.matches(":disabled, option, .skip")) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement)
      behind.unshift(getComputedStyle(e).backgroundColor);
    const back = light(behind), front = light([...behind, getComputedStyle(element).color]);
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.outerHTML.slice(0, 200)];
  }
  return worst;
})()"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    for method in ("grpo", "band_kl"):
        for seed in (0, 1):
            folder = write_run(root / f"{method}-{seed}", method=method, seed=seed, of=STEPS)
            lines = [line(i % 10) | {"step": i} for i in range(STEPS - 400 * seed)]
            write_lines(folder / "metrics.jsonl", lines)
    write_run(root / "<img src=x onerror=window.hacked=1>", method="<b>bold</b>")
    return root


@pytest.fixture(scope="module")
def address(root, browser):
    with Server(Api(Library(root)), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://localhost:{server.port}/"
        browser.open(f"{address}?key={server.key}#view=settings")
        browser.until("document.body?.dataset.ready")
        assert browser.script("location.href") == f"{address}#view=settings"  # the key is not seen
        yield address
        server.shutdown()


@contextmanager
def watching(folder, port):
    """`bandpo watch` in a process of its own; yields the address that it prints."""
    process = interruptible("watch", str(folder), "--port", str(port))
    try:
        yield next(line.strip() for line in process.stdout if "?key=" in line)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(browser, address):
    """Opens a view, draws it once, and asserts afterwards that nothing went wrong."""

    def opened(view, width=1280, scheme="light"):
        browser.complaints.clear()
        browser.size(width, 900)
        browser.prefer(scheme)
        browser.open("about:blank")
        browser.open(f"{address}#{view}")
        browser.until("document.body && document.body.dataset.ready > 0")
        return browser

    yield opened
    assert browser.complaints == []
    assert browser.script("window.hacked") is None
    assert all(r.startswith((address, "about:", "data:")) for r in browser.requests)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_fits_is_legible_and_executes_nothing(view, width, scheme, opened, tmp_path):
    page = opened(f"view={view}", width, scheme)
    assert page.script("document.documentElement.scrollWidth <= innerWidth")
    ratio, worst = page.script(CONTRAST)
    assert ratio >= 4.5, worst
    assert not page.script(
        "document.querySelectorAll('#view script, #view img, #view iframe').length"
    )
    shift = page.script(
        "new Promise(done => { let sum = 0; new PerformanceObserver(list => { for (const e of"
        " list.getEntries()) sum += e.value; }).observe({type: 'layout-shift', buffered: true});"
        " setTimeout(() => done(sum), 300) })"
    )
    assert shift < 0.1
    page.picture(tmp_path / f"{view}-{width}-{scheme}.png")


def test_every_hostile_sample_is_shown_as_text(opened):
    page = opened("view=samples&run=grpo-0")
    count = page.script("document.querySelectorAll('.sample').length")
    for i in range(count):
        page.script(f"document.querySelectorAll('.sample')[{i}].click()")
        shown = page.script("document.querySelectorAll('.reader pre')[1].textContent")
        assert shown
        assert not page.script(
            "document.querySelector('.reader').querySelectorAll('a,img,svg').length"
        )
    assert count == 14
    page.script("document.querySelectorAll('.sample')[0].click()")
    assert "<script>window.hacked" in page.script("document.querySelector('.reader').innerText")


def test_the_whole_of_a_long_text_is_shown_when_it_is_asked_for(opened):
    page = opened("view=samples&run=grpo-0&query=the end")
    assert "characters …" in page.until("document.querySelector('.reader').innerText")
    page.script("[...document.querySelectorAll('.reader button')].at(-1).click()")
    assert page.until("document.querySelector('.reader').textContent.includes('xTHE END')")


def test_runs_are_compared_by_what_differs_and_smoothed(opened):
    page = opened("view=curves&run=grpo-0&run=band_kl-0&run=band_kl-1")
    legend = "document.getElementById('legend').innerText"
    assert page.script(legend).split("\n") == ["grpo seed=0", "band_kl seed=0", "band_kl seed=1"]
    described = "document.querySelector('.plot').ariaLabel"
    assert page.script(described).startswith("reward/mean, last values: grpo seed=0: 0.9;")
    page.script("document.getElementById('smoothing').focus()")
    page.press("End", 35)
    page.until("location.hash.includes('smooth=500')")
    page.until("document.querySelector('output').textContent === 'half-life 500 steps'")
    assert page.script("document.activeElement.id") == "smoothing"
    page.script("document.querySelector('#runs input[data-run=\"grpo-0\"]').click()")
    page.until(f"!{legend}.includes('grpo')")
    assert page.script("document.querySelectorAll('canvas').length") == 4
    box = page.script("JSON.stringify(document.querySelector('.u-over').getBoundingClientRect())")
    box = json.loads(box)
    page.move(box["x"] + box["width"] / 2, box["y"] + 50)
    assert "seed=1" in page.until("document.querySelector('.tip:not([hidden])')?.innerText")


def test_a_colour_can_stand_for_a_setting(opened):
    page = opened("view=curves&run=grpo-0&run=band_kl-0&run=band_kl-1&colour=method.name")
    swatches = (
        "[...document.querySelectorAll('#legend .swatch')]"
        ".map(s => getComputedStyle(s).backgroundColor).join('|')"
    )
    first, second, third = page.script(swatches).split("|")
    assert first != second == third


def test_the_page_follows_a_run(opened, root):
    page = opened("view=curves&run=grpo-0")
    with (root / "grpo-0/metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(3) | {"step": STEPS, "reward/mean": 0.123}) + "\n")
    page.until("document.querySelector('.plot').ariaLabel.includes('0.123')")
    page.until("document.querySelector('#runs').innerText.includes('1500/1500')")


def test_the_page_says_so_when_it_cannot_follow(browser, root):
    """Its server has ended, and another one with another key has taken its place."""

    def said(words):
        browser.until(f"document.getElementById('live').innerText.includes({words!r})")

    with watching(root, 0) as address:
        browser.open(f"{address}#view=settings")
        browser.until("document.body?.dataset.ready")
    said("does not answer")
    assert browser.script("document.getElementById('live').className") == "bad"
    port = urlsplit(address).port
    with watching(root, port) as other:
        assert urlsplit(other).port == port and other != address
        said("open the whole address")
    browser.open("about:blank")
    browser.requests.clear()  # they went to other addresses than those of the other tests


def test_a_theme_that_is_chosen_holds_against_the_systems(opened):
    page = opened("view=curves", scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.script(colour) == "rgb(255, 255, 255)"
    choose = (
        "(() => { const t = document.getElementById('theme'); t.value = '%s';"
        " t.dispatchEvent(new Event('change')) })()"
    )
    page.script(choose % "dark")
    assert page.script(colour) == "rgb(20, 23, 27)"
    page.script(choose % "")
    assert page.script(colour) == "rgb(255, 255, 255)"


def test_samples_are_walked_by_keys_and_problems_lead_to_them(opened):
    page = opened("view=samples&run=grpo-0")
    page.script("document.querySelector('.sample').focus()")
    page.press("ArrowDown", 40)
    page.until("document.querySelectorAll('.sample')[1].getAttribute('aria-current') === 'true'")
    assert page.script("location.hash.includes('line=')")
    page = opened("view=problems&run=grpo-0&of=toy")
    page.script("document.querySelector('.problems a').click()")
    page.until("document.querySelectorAll('.sample').length === 1")
    assert page.script("document.querySelector('.reader').innerText.includes('e1')")


def test_all_that_is_used_can_be_reached_by_the_tabulator(opened):
    page = opened("view=curves&run=grpo-0")
    reached = set()
    for _ in range(60):
        page.press("Tab", 9)
        reached.add(page.script("document.activeElement.id || document.activeElement.textContent"))
    assert {"skip", "theme", "filter", "order", "Curves", "Log", "smoothing", "log"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_report_of_an_evaluation_fits_and_is_legible(width, scheme, browser, tmp_path):
    write_summaries(tmp_path, [evaluated(tmp_path)])
    browser.complaints.clear()
    browser.size(width, 900)
    browser.prefer(scheme)
    browser.open(write_report(tmp_path).as_uri())
    browser.until("!!document.querySelector('.heat')")
    browser.script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.script("document.documentElement.scrollWidth <= innerWidth")
    ratio, worst = browser.script(CONTRAST)
    assert ratio >= 4.5, worst
    assert browser.complaints == []
    browser.picture(tmp_path / f"report-{width}-{scheme}.png")
