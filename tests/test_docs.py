"""The pages: every command parses, every link leads somewhere, and the guide's steps that need no GPU really run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspi.charts.serve import ServeValues
from caspi.plan import make_plan
from caspi.spec import ClusterSpec, RoundSpec, load_cluster, load_round, parse
from tests.command import Finished, caspi
from tests.documentation import (
    HOUSE,
    PAGES,
    anchors,
    commands,
    dead_links,
    linked_pages,
    lost_paths,
    make_targets,
    problem,
)

GUIDE = HOUSE / "docs/guide-2xa100.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_run(page: Path) -> None:
    assert [said for command in commands(page.read_text(encoding="utf-8")) if (said := problem(command))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert (dead_links(page, text), lost_paths(text)) == ([], [])


def test_every_page_is_reached_by_a_link() -> None:
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {page.name for page in linked_pages()} == set()


def test_commands_are_found_where_they_stand() -> None:
    """In fenced and indented blocks, behind others in a line, over two lines; in sentences."""
    page = (
        "    make demo    # comment: caspi nothing\n\ntext `caspi status NAME` and `caspi-train`, `charts/x`\n"
        "```sh\ngit clone <address> caspi && cd caspi\ncaspi fetch     what this does\nhelm install caspi\n"
        "cd x && HF_TOKEN=a caspi run rounds/x.yaml \\\n  --cluster c.yaml > log\n"
        "   caspi push r --to a/b | tee log; make test\n```\n"
    )
    found = {" ".join(command.argv): command.whole for command in commands(page)}
    assert found == {
        "make demo": True,
        "caspi status NAME": False,
        "caspi fetch": False,
        "caspi run rounds/x.yaml --cluster c.yaml": True,
        "caspi push r --to a/b": True,
        "make test": True,
    }
    assert len([command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]) > 100


@pytest.mark.parametrize(
    "line, said",
    [
        ("caspi trian rounds/x.yaml", "no command trian"),
        ("caspi run rounds/x.yaml --clutser c.yaml", "caspi run has no --clutser"),
        ("caspi run", "Missing argument 'ROUND'"),
        ("caspi approve hebrew-r2 --by Dana", "Missing option '--reason'"),
        ("caspi status hebrew-r2 --to moon", "Invalid value for '--to'"),
        ("caspi serve model --port many", "Invalid value for '--port'"),
        ("make demonstration", "no target demonstration"),
        ("make demo FAMILLY=ctc", "nothing reads FAMILLY"),
    ],
)
def test_a_command_that_is_wrong_is_found(line: str, said: str) -> None:
    (found,) = (problem(command) for command in commands(f"```\n{line}\n```\n"))
    assert found and said in found


def test_a_sentence_may_leave_things_out_but_not_make_them_up() -> None:
    assert [problem(command) for command in commands("`caspi approve` and `caspi submit ... --wait`")] == [None, None]
    assert [problem(command) for command in commands("`caspi submit --waitt`")] != [None]


def test_links_and_paths_that_lead_nowhere_are_found() -> None:
    text = "[a](docs/audit.md) [b](docs/no.md) [c](docs/serve.md#on-kubernetes) [d](docs/serve.md#nowhere) [e](#here)\n"
    assert dead_links(HOUSE / "README.md", text) == [
        "docs/no.md: no such file",
        "docs/serve.md#nowhere: no such heading",
        "#here: no such heading",
    ]
    assert anchors("# What `it` says: all, really\n") == {"what-it-says-all-really"}
    text = (
        "`rounds/demo-r1.yaml` `rounds/x.yaml` `rounds/<name>.lock.yaml` `rounds/demo-r9.yaml` see docs/gone.md\n"
        "```\ncaspi init mine-r1 # rounds/mine-r1.yaml\nkubectl apply -k manifests/none\nls runs/demo-r1-*\n```\n"
    )
    assert lost_paths(text) == ["docs/gone.md", "manifests/none", "rounds/demo-r9.yaml"]


EXAMPLES = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```yaml\n(.*?)```|-f - <<EOF\n(.*?)^EOF", page.read_text(encoding="utf-8"), re.S | re.M)
]


@pytest.mark.parametrize("page, block", EXAMPLES, ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_example_files_are_valid(page: Path, block: tuple[str, str]) -> None:
    """Rounds, cluster files and values of charts/caspi-serve, with a digest where the page has dots."""
    content = yaml.safe_load("".join(block).replace("sha256:...", f"sha256:{'0' * 64}"))
    if {"round", "model"} <= content.keys():
        parse(content, RoundSpec, page.name)
    elif {"nodes", "gpus_per_node"} & content.keys():
        parse(content, ClusterSpec, page.name)
    elif {"round", "image"} <= content.keys():
        ServeValues.model_validate(content)


def test_make_help_has_every_target_that_pages_name() -> None:
    assert {"setup", "demo", "test", "images", "cluster-up"} <= make_targets()


# The guide.


def test_the_figures_of_the_guide_are_those_of_the_plan() -> None:
    plan = make_plan(load_round(HOUSE / "rounds/hebrew-r2.yaml"), load_cluster(HOUSE / "clusters/2xa100-40gb.yaml"))
    text = GUIDE.read_text(encoding="utf-8")
    first, second = plan.phases
    assert plan.memory and first.trainable and second.trainable and first.last_step
    new = second.trainable - first.trainable
    for figure in (
        f"{plan.data.train:,} train, {plan.data.eval:,} dev",
        f"steps {first.first_step:,}-{first.last_step:,}, {first.trainable:,} parameters move",
        f"steps {second.first_step:,}-{second.last_step:,}, {second.trainable:,} move",
        f"{plan.memory.total / 1e9:.1f} of {plan.memory.capacity / 1e9:.1f} GB",
        f"After step {first.last_step:,}",
        f"{new:,} parameters more: {new * 12 / 1e9:.1f} GB",
    ):
        assert figure in text, figure
    spec = load_round(HOUSE / "rounds/hebrew-r2.yaml")
    for decision, limits, word in (
        ("PROCEED", spec.audit.proceed, "under"),
        ("CAUTION", spec.audit.caution, "at most"),
    ):
        row = f"| {decision} | {word} {limits.low_quality:.0%} | {word} {limits.any_domain:.0%} |"
        assert row in text, row
    target, stop = spec.benchmark.target, spec.train.stop
    assert target and f"at most {target.at_most}% (goal {target.goal}, stretch {target.stretch})" in text
    assert stop.wer_above and f"stops above {stop.wer_above:g} after warm-up" in text


def test_the_arithmetic_of_the_budget() -> None:
    spec, cluster = load_round(HOUSE / "rounds/hebrew-r2.yaml"), load_cluster(HOUSE / "clusters/2xa100-40gb.yaml")
    plan = make_plan(spec, cluster)
    assert cluster.gpu and cluster.gpu.price and spec.train.stop.cost and plan.data.an_epoch
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| (\d+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for speed, hours, cost in rows:
        reckoned = plan.data.an_epoch * 5 / float(speed) / 3600
        assert (f"{reckoned:.1f}", f"{reckoned * 2 * cluster.gpu.price.amount:.0f}") == (hours, cost)
    assert {int(cost) for *_, cost in rows} >= {50, int(spec.train.stop.cost.amount)}


def test_the_budget_of_the_guide_is_that_of_the_alerts() -> None:
    rules = yaml.safe_load((HOUSE / "manifests/monitoring/rules.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
    amounts = [(rule["expr"].split()[0], rule["labels"]["level"]) for rule in rules[0]["rules"]]
    text = GUIDE.read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) USD \((\w+)\)", text, re.MULTILINE) == amounts
    assert f"for amount in ({', '.join(amount for amount, _ in amounts)})" in text
    alerts = {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule}
    assert set(re.findall(r"\bCaspi[A-Z]\w+", text)) <= alerts


def source() -> str:
    """All of the package, with strings that go on over lines put together, and what is filled in left out."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((HOUSE / "src/caspi").rglob("*.py")))
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)
    return re.sub(r"\{[^{}]*\}", "...", joined).replace("\\", "")


def unsaid(said: str, everything: str) -> list[str]:
    """Pieces of messages in backticks that nothing in the package says; dots and figures are what is filled in."""
    filled = r"\.\.\.|\d+|\"hebrew-r\d\"|: |; |\("
    pieces = [piece.strip(" .") for span in re.findall(r"`([^`]+)`", said) for piece in re.split(filled, span)]
    return [piece for piece in pieces if len(piece) > 3 and piece not in everything]


def test_what_the_guide_says_that_is_said_is_said() -> None:
    """The second column of the table of symptoms, message by message."""
    section = GUIDE.read_text(encoding="utf-8").split("## When something is wrong")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 28 and all(len(row) == 3 for row in rows)
    everything = source()
    found = {row[0]: missing for row in rows if (missing := unsaid(row[1], everything))}
    assert found == {}
    assert unsaid("`no space left on ...: the last lorry (step 3)`", everything) == ["the last lorry"]


def test_the_budget_alarm_of_a_box() -> None:
    """The script that the guide gives, on what `caspi status --json` says."""
    (script,) = re.findall(r"python -c '(import json.*?)'", GUIDE.read_text(encoding="utf-8"), re.DOTALL)

    def said(cost: dict[str, Any] | None) -> str:
        told = json.dumps([{"cost": cost}])
        return subprocess.run([sys.executable, "-c", script], input=told, capture_output=True, text=True).stdout

    assert said(None) == "" and said({"spent": 24.9}) == ""
    assert said({"spent": 41.0}).startswith("over 40 USD")


def test_the_round_as_it_ships_is_blocked_as_the_guide_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOUSE)
    step = "caspi doctor rounds/hebrew-r2.yaml --cluster clusters/2xa100-40gb.yaml"
    assert step in GUIDE.read_text(encoding="utf-8")
    done = caspi(*shlex.split(step)[1:])
    assert (done.code, done.out.splitlines()[-1]) == (2, "6 blocked")
    assert done.out.count('.revision = "main" moves') == 6
    need, each = re.findall(r"checkpoints need (\d+ GB) \((\d+ GB) each\)", done.out)[0]
    assert f"| {need}: {each} each" in GUIDE.read_text(encoding="utf-8")


LAPTOP_STEPS = [
    "caspi status rounds/hebrew-r2.yaml",
    "caspi stage export --round-dir runs/hebrew-r2-...",
    "caspi stage audit --round-dir runs/hebrew-r2-...",
    "caspi status hebrew-r2",
    "caspi report hebrew-r2",
    'caspi approve hebrew-r2 --by "Dana Levi" --reason "phone domain at 17%, 2% of the data; listened to 40 findings"',
]
"""Steps 3 and 4, in the order of the guide."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The smallest round that a gate can look at, called as in the guide: its audit says CAUTION."""
    spec = yaml.safe_load((HOUSE / "rounds/demo-r1.yaml").read_text(encoding="utf-8"))
    spec["round"] = "hebrew-r2"
    spec["data"]["subset"] = "30%"
    spec["data"]["sources"] = [{"name": "crowd", "path": str(HOUSE / "demo/crowd"), "domain": "phone"}]
    spec["audit"]["proceed"] = {"low_quality": "0.1%", "any_domain": "0.1%"}
    spec["audit"]["caution"] = {"low_quality": "90%", "any_domain": "90%"}
    for one in spec["benchmark"]["sets"]:
        one["path"] = str(HOUSE / "demo/test")
    path = tmp_path / "hebrew-r2.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def test_the_steps_of_the_guide_that_need_no_gpu(small: Path, tmp_path: Path) -> None:
    """Export, audit, status, report, approve, as they stand there, on the small round."""
    there = [command for command in commands(GUIDE.read_text(encoding="utf-8")) if command.whole]
    lines = [re.sub(r"\s+#.*", "", command.line) for command in there]
    at = [lines.index(step) for step in LAPTOP_STEPS]
    assert at == sorted(at)
    said: dict[str, Finished] = {}
    for step in LAPTOP_STEPS:
        argv = shlex.split(step)[1:]
        directory = next(iter(tmp_path.glob("runs/hebrew-r2-*")), tmp_path)
        meant = {"rounds/hebrew-r2.yaml": str(small), "runs/hebrew-r2-...": str(directory)}
        argv = [meant.get(word, word) for word in argv]
        if argv[0] in ("status", "report", "approve"):
            argv += ["--runs", str(tmp_path / "runs")]
        said[step] = caspi(*argv)
        assert said[step].code == 0, (step, said[step].err)
    _, _, _, status, report, approved = said.values()
    assert "the ledger balances" in status.out and "CAUTION" in status.out and "caspi approve hebrew-r2" in status.out
    assert Path(report.out.strip()).is_file()
    assert Path(approved.out.removeprefix("wrote ").strip()).name == "approval.json"
    again = caspi("approve", "hebrew-r2", "--runs", str(tmp_path / "runs"), "--by", " ", "--reason", "none")
    assert again.code == 2, "who signs has a name"
