"""The report page: what it says comes from the records, whatever state they are in, and text can't harm it."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from caspi.records.record import STAGES, StageName, write_record
from caspi.records.results import BenchmarkResults, CompareResults, ReportResults
from caspi.records.round_dir import RoundDir, create
from caspi.report import formats
from caspi.report.render import write_report
from caspi.spec import ClusterSpec, parse
from caspi.stages.report import STAGE
from caspi.stages.stage import perform
from tests.report_fixture import Rounds, make_record, make_rounds, make_spec, write_lines

VOID = {"meta", "link", "br", "img", "input", "hr"}
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


@dataclass
class Node:
    """One element."""

    tag: str
    attributes: dict[str, str | None]
    parts: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(part if isinstance(part, str) else f" {part.text} " for part in self.parts).split())

    def all(self, tag: str, kind: str = "") -> list[Node]:
        found: list[Node] = []
        for part in self.parts:
            if isinstance(part, Node):
                if part.tag == tag and (not kind or kind in (part.attributes.get("class") or "").split()):
                    found.append(part)
                found += part.all(tag, kind)
        return found


class Tree(HTMLParser):
    """Parses strictly: every element is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.stack = [self.root]
        self.feed(html)
        self.close()
        assert self.stack == [self.root], f"never closed: {[node.tag for node in self.stack]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute stands twice in {tag}"
        node = Node(tag, dict(attrs))
        self.stack[-1].parts.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.stack[-1].parts.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1].tag == tag, f"</{tag}> closes <{self.stack[-1].tag}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].parts.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    return make_rounds(tmp_path_factory.mktemp("rounds"))


@pytest.fixture
def rounds(made: Rounds, tmp_path: Path) -> Rounds:
    """A copy to spoil."""
    home = made.first.path.parent.parent
    shutil.copytree(home, tmp_path / "home")
    runs = tmp_path / "home" / "runs"
    first, second = (create(runs, one.spec, ClusterSpec(), runs.parent) for one in (made.first, made.second))
    return Rounds(first, second)


def page(round_dir: RoundDir) -> str:
    write_report(round_dir)
    return (round_dir.folder("report") / "index.html").read_text(encoding="utf-8")


def tree(html: str) -> Node:
    return Tree(html).root


def rows(node: Node) -> list[list[str]]:
    return [[cell.text for cell in row.parts if isinstance(cell, Node)] for row in node.all("tr")]


def test_the_page_is_one_sound_file_that_asks_for_nothing(made: Rounds) -> None:
    for round_dir in (made.first, made.second):
        html = page(round_dir)
        root = tree(html)
        policy = [m for m in root.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
        assert [m.attributes["content"] for m in policy] == [CSP]
        assert not root.all("script") and not root.all("iframe") and not root.all("img")
        addresses = re.findall(r"""(?:src|href|action|srcset|poster|data)\s*=\s*["']([^"']*)""", html)
        assert addresses and all(re.match(r"data:|#", address) for address in addresses)
        assert "url(" not in html and "@import" not in html and "http:" not in html and "https:" not in html
        assert not re.search(r"<[^>]+\son\w+=", html)
        assert len(html) < 3_000_000


def test_the_page_can_be_found_through_by_headings_labels_and_anchors(made: Rounds) -> None:
    root = tree(page(made.second))
    assert root.all("html")[0].attributes["lang"] == "en"
    assert [h.text for h in root.all("h1")] == ["demo-r2"]
    sections = ["Quality", "Training", "Data", "Audit", "Examples", "Provenance"]
    assert [h.text for h in root.all("h2")] == sections
    ids = re.findall(r'\bid="([^"]+)"', page(made.second))
    assert len(ids) == len(set(ids))
    assert {a.attributes["href"] for a in root.all("a")} <= {f"#{name}" for name in ids}
    assert all(th.attributes.get("scope") for th in root.all("th"))
    for table in root.all("table"):
        header = sum(int(cell.attributes.get("colspan") or 1) for cell in table.all("tr")[0].all("th"))
        for row in table.all("tr"):
            cells = [cell for cell in row.parts if isinstance(cell, Node)]
            assert sum(int(cell.attributes.get("colspan") or 1) for cell in cells) == header, row.text
    charts = [svg for svg in root.all("svg") if svg.attributes.get("class")]
    assert len(charts) >= 10 and all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in charts)
    assert all(audio.attributes["aria-label"] for audio in root.all("audio"))


def test_the_first_screen_says_how_good_it_is(made: Rounds) -> None:
    root = tree(page(made.second))
    compare = CompareResults.model_validate(made.second.succeeded("compare").results)
    assert [p.text for p in root.all("p", "verdict")] == [formats.typeset(compare.sentence)]
    assert "good" in str(root.all("p", "verdict")[0].attributes["class"])
    facts = {fact.all("dt")[0].text: fact.all("b")[0].text for fact in root.all("dl", "facts")[0].all("div")}
    scores = BenchmarkResults.model_validate(made.second.succeeded("benchmark").results).scores
    average = next(s for s in scores if (s.group, s.profile) == ("average", "hebrew-fair"))
    delta = next(d for d in compare.deltas if (d.group, d.profile) == ("average", "hebrew-fair"))
    assert facts == {
        "Word error rate": formats.percent(average.wer.value),
        "Against demo-r1": " ".join(formats.signed(delta.difference.value, " points").split()),
        "Training data": "1.60 h",
        "Training": "3 min 08 s",
        "GPU hours": "0",
    }
    assert [b.text for b in root.all("header", "top")[0].all("span", "badge")] == ["PROCEED"]
    first = tree(page(made.first))
    assert first.all("p", "verdict")[0].text.startswith("demo-r1 reaches a WER of ")
    assert "good" not in str(first.all("p", "verdict")[0].attributes["class"])


def test_the_tables_hold_the_numbers_of_the_records(made: Rounds) -> None:
    root = tree(page(made.second))
    tables = {str(box.attributes["aria-label"]): rows(box) for box in root.all("div", "scroll")}
    scores = BenchmarkResults.model_validate(made.second.succeeded("benchmark").results).scores
    wanted = [
        [
            formats.count(score.utterances),
            formats.count(score.words),
            f"{formats.percent(score.wer.value)} {formats.interval(score.wer)}",
            f"{formats.percent(score.cer.value)} {formats.interval(score.cer)}",
            str(score.substitutions),
            str(score.deletions),
            str(score.insertions),
        ]
        for score in scores
    ]
    shown = [row[1:] for row in tables["Error rates"] if len(row) == 8][1:]
    assert sorted(shown) == sorted(wanted) and len(shown) == 12
    compare = CompareResults.model_validate(made.second.succeeded("compare").results)
    shown = [row[1:] for row in tables["Comparison with demo-r1"] if len(row) == 6][1:]
    assert sorted(shown) == sorted(
        [
            formats.count(delta.utterances),
            formats.percent(delta.baseline_wer),
            formats.percent(delta.candidate_wer),
            f"{formats.signed(delta.difference.value, '')} {formats.signed_interval(delta.difference)}",
            formats.signed(delta.relative),
        ]
        for delta in compare.deltas
    )
    crowd = next(row for row in tables["Ledger"] if row[0] == "crowd")
    assert crowd[1:6] == ["1,000", "941", "860", "81", "1.12 h"]
    parts = "kept 941 too short 31 too few characters a second 19 not decodable 6 empty 3"
    assert crowd[6].endswith(parts)
    assert [row[:4] for row in tables["Phases"][1:]] == [
        ["B", "0–239", "918,347", "45.1%"],
        ["A", "240–599", "1,019,117", "50.0%"],
    ]
    assert ["phone", "860", "860", "2.9% 2.0–4.3%", "3.4 s", "11.2 characters/s"] in tables["Domains"]
    assert [row[0] for row in tables["Stages"][1:]] == list(STAGES[:-1])
    for stage in STAGES[:-1]:
        record = made.second.succeeded(stage)
        for sha in (*record.inputs.values(), *record.outputs.values(), record.digest[:12]):
            assert sha in root.text


def test_a_changed_record_changes_the_page(rounds: Rounds) -> None:
    """No number is from anywhere else."""
    record = rounds.second.succeeded("benchmark")
    results = json.loads(json.dumps(record.results).replace("0.1", "0.7"))
    results["loops"] = 4321
    before = page(rounds.second)
    write_record(rounds.second.folder("benchmark") / "record.json", record.model_copy(update={"results": results}))
    after = page(rounds.second)
    assert "4,321 hypotheses that repeat" in " ".join(after.split()) and "4,321" not in before
    wer = formats.percent(results["scores"][-1]["wer"]["value"])
    assert wer in after


def test_equal_records_give_equal_bytes(made: Rounds, rounds: Rounds) -> None:
    assert page(made.second) == page(made.second)
    assert page(rounds.second) == page(made.second)  # wherever they lie


def test_it_is_made_in_under_a_second(made: Rounds) -> None:
    page(made.second)
    started = time.process_time()
    page(made.second)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_failed_stage_is_shown_with_its_error(rounds: Rounds, stage: StageName) -> None:
    make_record(rounds.second, stage, None, error="step 273: loss is NaN <b>& more")
    for later in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(rounds.second.folder(later), ignore_errors=True)
    root = tree(page(rounds.second))
    assert root.all("p", "verdict")[0].text == f"demo-r2 isn't finished: {stage} failed."
    assert [pre.text for pre in root.all("pre", "error")] == ["step 273: loss is NaN <b>& more"]
    states = {li.all("b")[0].text: li.all("span")[0].text for li in root.all("ol", "stages")[0].all("li")}
    assert states[stage] == "failed"
    assert {states[later] for later in STAGES[STAGES.index(stage) + 1 : -1]} <= {"not run"}


@pytest.mark.parametrize("stage", STAGES[:-1])
@pytest.mark.parametrize("damage", ["{", '{"stage": 1}', "results"])
def test_a_damaged_record_is_shown_as_such(rounds: Rounds, stage: StageName, damage: str) -> None:
    path = rounds.second.folder(stage) / "record.json"
    text = path.read_text()
    path.write_text(damage if damage != "results" else json.dumps(json.loads(text) | {"results": {"odd": 1}}))
    root = tree(page(rounds.second))
    assert f"{stage} has a damaged record" in root.all("p", "verdict")[0].text
    assert len(root.all("pre", "error")) == 1


@pytest.mark.parametrize(
    "gone",
    [
        "train/metrics.jsonl",
        "audit/findings.jsonl",
        "benchmark/predictions.jsonl",
        "export",
        "audit",
        "train",
        "benchmark",
        "compare",
    ],
)
def test_whatever_is_missing_the_rest_is_shown(rounds: Rounds, gone: str) -> None:
    path = rounds.second.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [h.text for h in tree(page(rounds.second)).all("h2")][-1] == "Provenance"


def test_a_round_that_never_ran_and_one_without_its_parent(rounds: Rounds, tmp_path: Path) -> None:
    empty = create(tmp_path / "runs", make_spec("empty", None), ClusterSpec(), tmp_path)
    assert tree(page(empty)).all("p", "verdict")[0].text == "empty hasn't run yet."
    shutil.rmtree(rounds.first.path)
    html = page(rounds.second)
    assert "No baseline: no round" in html and "Most gained" not in html and "Worst" in html


def test_training_that_is_under_way_shows_its_curves(rounds: Rounds) -> None:
    for stage in ("train", "benchmark", "compare"):
        (rounds.second.folder(stage) / "record.json").unlink()
    root = tree(page(rounds.second))
    assert "What was logged until step 600:" in root.text
    titles = [figure.all("b")[0].text for figure in root.all("div", "charts")[0].all("figure")]
    assert titles == ["Loss", "Error rates on dev", "Learning rates", "Speed"]


def test_caution_shows_who_approved_it(rounds: Rounds) -> None:
    record = rounds.second.succeeded("audit")
    results = record.results | {"decision": "CAUTION"}
    record = record.model_copy(update={"results": results})
    write_record(rounds.second.folder("audit") / "record.json", record)
    assert "Nobody has approved it yet" in page(rounds.second)
    approval = rounds.second.folder("audit") / "approval.json"
    signed = {"by": "Dana <dana@example.org>", "reason": "heard them all", "audit": "0" * 64}
    approval.write_text(json.dumps(signed))
    assert "Nobody has approved it yet" in page(rounds.second)
    approval.write_text(json.dumps(signed | {"audit": record.digest}))
    text = tree(page(rounds.second)).text
    approved = "Approved by Dana <dana@example.org> : “ heard them all ”"
    assert approved in text and "Nobody has approved" not in text


def test_gpu_time_and_its_cost_come_from_training_and_the_cluster(rounds: Rounds) -> None:
    values = {"gpus_per_node": 2, "gpu": {"product": "NVIDIA-A100", "memory": "40GiB", "price": "1.60 USD/h"}}
    cluster = parse(values, ClusterSpec, "cluster")
    round_dir = create(rounds.second.path.parent, rounds.second.spec, cluster, rounds.second.path.parent.parent)
    record = round_dir.succeeded("train")
    circumstances = record.circumstances.model_copy(update={"figures": {"gpu_hours": 2.5}})
    write_record(round_dir.folder("train") / "record.json", record.model_copy(update={"circumstances": circumstances}))
    text = tree(page(round_dir)).text
    assert "Cost 4.00 USD 2.50 GPU hours, 2 × NVIDIA-A100" in text


HOSTILE = [
    "</p></section><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %} <!-- ]]> &amp; &lt;",
    "שלום \u202eevil\u202c \u2067open \u2069\u2069",
    "x" * 50_000,
    "מילה" * 3_000 + " end",
    "\x00\x07\x1b[2J",
    "\ud83d lone",
    "",
    " \t\n ",
    "‫embedding without its end",
]


def test_hostile_text_stays_text(rounds: Rounds) -> None:
    lines: list[dict[str, Any]] = [
        {
            "id": f"{text[:80]}#{index}",
            "set": "unseen-voices",
            "domain": text[:40],
            "reference": text,
            "hypothesis": other,
            "raw": other,
            "seconds": 1.0,
            "audio": "../../../../etc/passwd",
        }
        for index, (text, other) in enumerate(zip(HOSTILE, reversed(HOSTILE), strict=True))
    ]
    path = rounds.second.folder("benchmark") / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    findings = [
        {
            "utterance": text,
            "check": "silent",
            "detail": text,
            "domain": text,
            "source": text,
            "text": text,
            "audio": text,
        }
        for text in HOSTILE
    ]
    (rounds.second.folder("audit") / "findings.jsonl").write_text("".join(json.dumps(f) + "\n" for f in findings))
    make_record(rounds.second, "export", None, error=" ".join(HOSTILE).replace("\ud83d", ""))
    html = page(rounds.second)
    root = tree(html)
    assert not root.all("script") and not root.all("img")
    assert "49" not in root.all("section")[4].text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", html)
    assert "⟨U+202E⟩" in html and "⟨U+D83D⟩" in html
    assert "root:" not in html
    assert len(html) < 3_000_000


def test_a_very_long_prediction_is_cut_and_says_so(rounds: Rounds) -> None:
    line = {"id": "a", "set": "s", "domain": "d", "seconds": 1.0, "audio": "x", "raw": ""}
    texts = {"reference": "a " * 5000, "hypothesis": "b " * 5000}
    write_lines(rounds.second.folder("benchmark") / "predictions.jsonl", [line | texts])
    html = page(rounds.second)
    assert "… and 4,800 more pieces" in html and "more characters)" in html


def test_predictions_that_are_not_whole_are_said_to_be_so(rounds: Rounds) -> None:
    path = rounds.second.folder("benchmark") / "predictions.jsonl"
    for text in ("{", '{"id": 1}', '{"id":"a","set":"s","domain":"d","reference":"","hypothesis":"","seconds":null}'):
        path.write_text(text + "\n")
        assert "No predictions yet: " in page(rounds.second)


def test_diffs_mark_errors_by_more_than_colour_and_keep_hebrew_in_order(made: Rounds) -> None:
    root = tree(page(made.second))
    diffs = root.all("section")[4].all("p", "diff")
    assert len(diffs) >= 24 and {diff.attributes["dir"] for diff in diffs} == {"rtl"}
    for diff in diffs:
        for mark in (*diff.all("del"), *diff.all("ins")):
            assert [type(part) for part in mark.parts] == [Node] and mark.all("bdi")
    kinds = {str(m.attributes.get("class")) for d in diffs for m in (*d.all("del"), *d.all("ins"), *d.all("span"))}
    assert {"missing", "extra", "wrong"} <= kinds


def test_clips_are_in_the_page_and_counted(made: Rounds) -> None:
    html = page(made.second)
    players = tree(html).all("audio")
    assert len(players) == 27
    assert all(str(p.attributes["src"]).startswith("data:audio/wav;base64,UklGR") for p in players)
    assert all(p.attributes["preload"] == "none" for p in players)
    assert "Audio in this page: 27 of 27 clips" in html


def test_without_the_audio_the_page_says_so(rounds: Rounds) -> None:
    shutil.rmtree(rounds.second.path.parent.parent / "demo")
    html = page(rounds.second)
    assert "No audio: its source isn&#39;t on this machine" in html and "Audio in this page: 0 of 27 clips" in html


def test_the_stage_writes_a_record_of_what_it_read(rounds: Rounds) -> None:
    record, worked = perform(STAGE, rounds.second)
    assert worked and set(record.inputs) == {"report", *STAGES[:-1], "demo-r1/benchmark"}
    results = ReportResults.model_validate(record.results)
    assert (results.predictions, results.clips) == (16, 27)
    assert perform(STAGE, rounds.second) == (record, False)
    (rounds.second.folder("report") / "index.html").unlink()
    again, worked = perform(STAGE, rounds.second)
    assert worked and again.digest == record.digest
    make_record(rounds.second, "compare", None, error="no")
    assert perform(STAGE, rounds.second)[1]


def test_times_and_hosts_do_not_change_the_digest_of_the_record(rounds: Rounds) -> None:
    before, _ = perform(STAGE, rounds.second)
    train = rounds.second.succeeded("train")
    circumstances = train.circumstances.model_copy(update={"host": "elsewhere", "seconds": 1.0})
    write_record(
        rounds.second.folder("train") / "record.json", train.model_copy(update={"circumstances": circumstances})
    )
    (rounds.second.folder("report") / "record.json").unlink()
    after, _ = perform(STAGE, rounds.second)
    assert after.digest == before.digest
    assert after.circumstances.outputs != before.circumstances.outputs


def test_the_average_of_other_sets_is_no_baseline(rounds: Rounds) -> None:
    def dots(html: str) -> int:
        return html.count('class="baseline hollow"')

    assert dots(page(rounds.second)) == 3
    record = rounds.first.succeeded("benchmark")
    kept = [score for score in record.results["scores"] if score["group"] != "set:unseen-phone"]
    changed = record.model_copy(update={"results": record.results | {"scores": kept}})
    write_record(rounds.first.folder("benchmark") / "record.json", changed)
    assert dots(page(rounds.second)) == 1


def test_a_share_of_everything_has_no_interval(rounds: Rounds) -> None:
    record = rounds.second.succeeded("audit")
    exact = {"value": 0.075, "low": 0.075, "high": 0.075}
    results = record.results | {"low_quality": exact}
    results["domains"] = [domain | {"low_quality": exact} for domain in results["domains"]]
    changed = record.model_copy(update={"results": results})
    write_record(rounds.second.folder("audit") / "record.json", changed)
    html = page(rounds.second)
    assert "7.5–7.5%" not in html and "7.5% exact" in tree(html).text
