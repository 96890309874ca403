"""The report in a real browser, from a file:// address. Needs Chromium: run by `pytest -m browser`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from caspi.report.render import write_report
from tests.browser import Browser, browser
from tests.report_fixture import make_rounds
from tests.test_report import HOSTILE

pytestmark = pytest.mark.browser

OVERFLOWING = """
[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  const scrolls = e.closest(".scroll, figure, .skip, pre");
  return box.width > 0 && box.right > document.documentElement.clientWidth + 1 && !scrolls;
}).map(e => e.outerHTML.slice(0, 120))
"""
CONTRAST = """
(() => {
  const light = c => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    if (e.getBoundingClientRect().width === 0) continue;
    const ink = luminance(parse(e.closest("svg") ? style.fill : style.color)), paper = luminance(behind(e));
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 100)}`);
  }
  return faint;
})()
"""
WORD_PLACES = """
[...document.querySelectorAll("#examples p.diff")].map(p => [...p.children].map(e => {
  const box = e.getClientRects()[0];
  return [Math.round(box.top / 12), Math.round(box.left), Math.round(box.right)];
}))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    rounds = make_rounds(tmp_path_factory.mktemp("browser"))
    write_report(rounds.second)
    return (rounds.second.folder("report") / "index.html").as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280, 2400])
def test_it_loads_quietly_and_fits(chromium: Browser, report: str, width: int) -> None:
    chromium.open(report, width)
    assert chromium.console == []
    assert [url for url in chromium.requests if not url.startswith("data:")] == [report]
    assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert chromium.evaluate(OVERFLOWING) == []
    assert chromium.evaluate("document.querySelector('h1').textContent") == "demo-r2"


def test_the_policy_would_be_heard_if_anything_were_asked_for(chromium: Browser, report: str, tmp_path: Path) -> None:
    """The twin of the test above: a planted script, picture and style sheet are refused, and noticed."""
    html = Path(report.removeprefix("file://")).read_text(encoding="utf-8")
    planted = '<script>document.title = "run"</script><img src="https://example.org/x.png" alt="">'
    (tmp_path / "planted.html").write_text(html.replace("<main", f"{planted}<main"), encoding="utf-8")
    chromium.open((tmp_path / "planted.html").as_uri())
    assert len(chromium.console) >= 2 and all("Content Security Policy" in line for line in chromium.console)
    assert chromium.evaluate("document.title") == "demo-r2: round report"


def test_every_clip_can_be_played(chromium: Browser, report: str) -> None:
    chromium.open(report)
    durations = chromium.evaluate(
        """Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise(done => {
          audio.onloadedmetadata = () => done(audio.duration);
          audio.onerror = () => done(-1);
          audio.load(); audio.preload = "metadata";
        })))"""
    )
    assert len(durations) == 27 and all(0.5 < seconds < 2 for seconds in durations)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read_in_light_and_dark(chromium: Browser, report: str, dark: bool) -> None:
    chromium.open(report, 1280, dark=dark)
    paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(21, 23, 27)") == dark
    assert chromium.evaluate(CONTRAST) == []
    chromium.evaluate("document.querySelector('h1').style.color = 'var(--rule)'")  # the check does check
    assert len(chromium.evaluate(CONTRAST)) == 1


def test_hebrew_runs_from_right_to_left(chromium: Browser, report: str) -> None:
    """Each piece of a diff stands left of the one before it, or on a later line."""
    chromium.open(report)
    places = chromium.evaluate(WORD_PLACES)
    assert len(places) >= 24
    for pieces in places:
        for (line, left, _), (next_line, _, next_right) in pairwise(pieces):
            assert next_line > line or next_right <= left + 1


def test_charts_draw_inside_their_plots(chromium: Browser, report: str) -> None:
    for width in (360, 1280):
        chromium.open(report, width)
        outside = chromium.evaluate(
            """[...document.querySelectorAll("svg.plot .line, svg.plot circle, svg.plot .range")].filter(mark => {
              const plot = mark.closest("svg.plot").getBoundingClientRect(), box = mark.getBoundingClientRect();
              return box.left < plot.left - 6 || box.right > plot.right + 6 || box.top < plot.top - 6
                || box.bottom > plot.bottom + 6;
            }).length"""
        )
        assert outside == 0
        cut = chromium.evaluate(
            """[...document.querySelectorAll("figure svg text")].filter(text => {
              const figure = text.closest("figure").getBoundingClientRect(), box = text.getBoundingClientRect();
              return box.width > 0 && (box.left < figure.left - 1 || box.right > figure.right + 1);
            }).map(text => text.textContent)"""
        )
        assert cut == []


def test_it_can_be_walked_by_keyboard_and_printed(chromium: Browser, report: str) -> None:
    chromium.open(report)
    chromium.call("Emulation.setFocusEmulationEnabled", enabled=True)
    for kind in ("keyDown", "keyUp"):
        chromium.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert chromium.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert chromium.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    pages = chromium.call("Page.printToPDF", printBackground=True)["data"]
    assert len(pages) > 50_000
    chromium.open(report, media="print")
    assert chromium.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_hostile_text_runs_nothing_and_breaks_nothing(chromium: Browser, tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path)
    path = rounds.second.folder("benchmark") / "predictions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [json.loads(line) for line in lines[: len(HOSTILE)]]
    for line, text, other in zip(changed, HOSTILE, reversed(HOSTILE), strict=True):
        line |= {"reference": text, "hypothesis": other}
    path.write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
    write_report(rounds.second)
    chromium.open((rounds.second.folder("report") / "index.html").as_uri(), 390)
    assert chromium.console == []
    assert chromium.evaluate("document.querySelectorAll('script, img, iframe').length") == 0
    assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert chromium.evaluate(OVERFLOWING) == []
