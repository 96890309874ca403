"""Preparation in pods: the same round, export, audit and gate, approvals, the last message; fetch; nothing of torch."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import caspi.execution.prepare as preparation
from caspi.audit.gate import check_gate
from caspi.errors import GateRefused, UserError
from caspi.execution.prepare import Approval, adopt, assist, pass_gate, prepare
from caspi.files import write_text
from caspi.records.heartbeat import parse_last_message
from caspi.records.round_dir import RoundDir
from caspi.spec import load_round
from caspi.stages import audit, export
from caspi.stages.stage import alone, perform
from tests.command import caspi
from tests.standins.corpora import encoded, make_round, rows, write_parquet
from tests.standins.model_hub import Commit, ModelHub, serve


def speech(count: int, silent: int = 0) -> list[dict[str, Any]]:
    """Rows that the audit finds nothing in, but for `silent` of them."""
    rng, made = np.random.default_rng(count), rows(count)
    for number, row in enumerate(made):
        samples = (1e-4 if number < silent else 0.1) * rng.standard_normal(16_000)
        row["audio"]["bytes"] = encoded(samples.astype(np.float32))
    return made


def files_of(folder: Path, silent: int = 0, **data: Any) -> dict[str, str]:
    """The options that a pod of a round gets: files as in its ConfigMap, and an empty volume."""
    write_parquet(folder / "crowd" / "a.parquet", speech(60, silent))
    write_parquet(folder / "test" / "test.parquet", speech(7))
    made = make_round(folder, **data)
    config = folder / "etc"
    config.mkdir()
    for name in ("round.yaml", "cluster.yaml"):
        shutil.copy(made.path / name, config / name)
    shutil.rmtree(folder / "runs")
    return {
        "round": str(config / "round.yaml"),
        "cluster": str(config / "cluster.yaml"),
        "runs": str(folder / "volume"),
        "digest": made.spec.digest,
    }


def options(given: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items()]


def adopted(given: dict[str, str]) -> RoundDir:
    return adopt(Path(given["round"]), Path(given["cluster"]), Path(given["runs"]), given["digest"])


@pytest.fixture
def last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASPI_TERMINATION_LOG", str(tmp_path / "termination-log"))
    return tmp_path / "termination-log"


def test_a_sound_round_is_prepared_once(tmp_path: Path, last: Path) -> None:
    given = files_of(tmp_path)
    first = caspi("prepare", *options(given))
    assert first.code == 0, first.err
    lines = [line for line in first.err.splitlines() if "it/s" not in line and "%|" not in line]
    assert [line.split()[0] for line in lines] == ["r", "export", "audit", "gate"]
    assert "48 train" in lines[1]
    assert "PROCEED: 0.0% low quality" in lines[2]
    round_dir = adopted(given)
    check_gate(round_dir)
    before = (round_dir.path / "audit" / "record.json").read_bytes()
    again = caspi("prepare", *options(given))
    assert again.code == 0
    assert again.err.count("(done before)") == 2
    assert (round_dir.path / "audit" / "record.json").read_bytes() == before
    assert not last.exists(), "nothing went wrong"


def test_another_round_is_refused_before_anything_is_written(tmp_path: Path, last: Path) -> None:
    given = files_of(tmp_path)
    for command in (["prepare"], ["prepare", "--assist"], ["fetch"]):
        done = caspi(*command, *options(given | {"digest": "e" * 64}))
        assert done.code == 2
        assert f"it digests to {given['digest'][:12]}, and --digest is {'e' * 12}" in done.err
        message = parse_last_message(last.read_text())
        assert message is not None
        assert (message.code, message.line) == (2, done.err.strip())
        assert not Path(given["runs"]).exists()


def test_a_caution_is_refused_with_the_command_that_signs_it(tmp_path: Path, last: Path) -> None:
    given = files_of(tmp_path, silent=7)
    refused = caspi("prepare", *options(given))
    assert refused.code == 3
    sha = adopted(given).succeeded("audit").digest
    message = parse_last_message(last.read_text())
    assert message is not None
    assert message.code == 3
    assert "the audit says CAUTION" in message.line
    assert (
        f'caspi submit rounds/r.yaml --cluster ... --approve-by NAME --approve-reason "..." --approve-audit {sha[:12]}'
        in (message.line)
    )
    assert not (adopted(given).path / "audit" / "approval.json").exists()

    sign = ["--approve-by=Dana", "--approve-reason=known", f"--approve-audit={sha[:12]}"]
    for number in range(3):
        missing = caspi("prepare", *options(given), *sign[:number], *sign[number + 1 :])
        assert missing.code == 2
        assert sign[number].split("=")[0] in missing.err
    short = caspi("prepare", *options(given), *sign[:2], "--approve-audit=abc")
    assert (short.code, "at least 12 digits" in short.err) == (2, True)

    other = caspi("prepare", *options(given), *sign[:2], f"--approve-audit={'0' * 12}")
    assert other.code == 3
    assert f"the approval given ({'0' * 12}) is of another audit" in other.err
    assert f"--approve-audit {sha[:12]}" in other.err
    assert not (adopted(given).path / "audit" / "approval.json").exists()

    signed = caspi("prepare", *options(given), *sign)
    assert signed.code == 0, signed.err
    check_gate(adopted(given))
    approval = (adopted(given).path / "audit" / "approval.json").read_bytes()
    assert caspi("prepare", *options(given)).code == 0, "a signature stays"
    assert caspi("prepare", *options(given), *sign).code == 0
    assert (adopted(given).path / "audit" / "approval.json").read_bytes() == approval, "signed once"


def test_a_stop_is_never_signed_and_a_proceed_needs_none(tmp_path: Path) -> None:
    stop, proceed = tmp_path / "stop", tmp_path / "proceed"
    stopped = adopted(files_of(stop, silent=30))
    passed = adopted(files_of(proceed))
    for round_dir in (stopped, passed):
        perform(export.STAGE, round_dir)
        perform(audit.STAGE, round_dir)
    approval = Approval("Dana", "because", stopped.succeeded("audit").digest)
    with pytest.raises(GateRefused, match="says STOP"):
        pass_gate(stopped, approval)
    pass_gate(passed, approval)
    assert not list(tmp_path.rglob("approval.json"))


def test_a_failed_export_says_why_in_the_last_message(tmp_path: Path, last: Path) -> None:
    given = files_of(tmp_path)
    shutil.rmtree(tmp_path / "crowd")
    done = caspi("prepare", *options(given))
    assert done.code == 2
    message = parse_last_message(last.read_text())
    assert message is not None
    assert message.line == done.err.splitlines()[-1]
    assert "no such file or folder" in message.line


def test_a_full_disk_is_one_line(tmp_path: Path, last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = files_of(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/rounds/r/export/parts")

    monkeypatch.setattr(export, "index_shard", full)
    done = caspi("prepare", *options(given))
    assert done.code == 4
    assert done.err.splitlines()[-1].startswith("no space left on /rounds/r/export/parts: stage export is not recorded")
    message = parse_last_message(last.read_text())
    assert message is not None
    assert message.code == 4


def test_a_fault_is_in_the_last_message_and_its_traceback_in_the_log(
    tmp_path: Path, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = files_of(tmp_path)
    monkeypatch.setattr(preparation, "summary", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        caspi("prepare", *options(given))
    message = parse_last_message(last.read_text())
    assert message is not None
    assert (message.code, message.line) == (
        1,
        "a fault in Caspi, please report it: ZeroDivisionError: division by zero",
    )


def test_a_pod_waits_for_one_that_is_still_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new pod may come before the old one has let go of the round: that is no error."""
    monkeypatch.setattr("caspi.stages.stage.LOCK_SECONDS", 0.0)
    round_dir = adopted(files_of(tmp_path))
    said: list[str] = []
    holder = alone(round_dir)
    holder.__enter__()

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            holder.__exit__(None, None, None)

    prepare(round_dir, None, say)
    assert all("is at work on this round" in line for line in said[:2])
    assert said[-1] == "gate    passed"


def test_eight_pods_make_the_same_directory(tmp_path: Path) -> None:
    given = files_of(tmp_path)
    context = multiprocessing.get_context("fork")
    pods = [context.Process(target=_adopt_often, args=(given,)) for _ in range(8)]
    for process in pods:
        process.start()
    for process in pods:
        process.join(60)
    assert [process.exitcode for process in pods] == [0] * 8
    [made] = Path(given["runs"]).iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["cluster.yaml", "round.yaml"]
    assert load_round(made / "round.yaml").digest == given["digest"]


def _adopt_often(given: dict[str, str]) -> None:
    for _ in range(10):
        adopted(given)


# --- an assistant


def test_an_assistant_without_a_leader_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(preparation, "LOOK_SECONDS", 0.05)
    given = files_of(tmp_path)
    place = Path(given["round"]), Path(given["runs"]), given["digest"]
    assert assist(*place) == "no leader came"
    assert not Path(given["runs"]).exists(), "an assistant makes no round directory"
    round_dir = adopted(given)
    assert assist(*place) == "no sign of the leader any more"
    write_text(round_dir.path / "export" / f"parts-{'0' * 16}" / ".open", "")  # of other data than these
    assert assist(*place) == "no sign of the leader any more"
    assert not list(round_dir.path.glob("export/parts-*/*.jsonl"))
    perform(export.STAGE, round_dir)
    perform(audit.STAGE, round_dir)
    assert assist(*place) == "the audit is done"


def test_an_assistant_that_cannot_help_leaves_it_to_the_leader(tmp_path: Path) -> None:
    given = files_of(tmp_path)
    round_dir = adopted(given)
    write_text(round_dir.path / "export" / f"parts-{'0' * 16}" / ".open", "")
    shutil.rmtree(tmp_path / "crowd")
    done = caspi("prepare", "--assist", *options(given))
    assert done.code == 0
    assert "assistant: can't help here: " in done.err


# --- as a pod runs it: another process, no torch, SIGTERM

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "qwen_asr", "peft", "prometheus_client", "fastapi"):
            raise ImportError(f"the launcher has no {name}")
sys.meta_path.insert(0, Blocked())
from caspi.cli import main
main()
"""


def pod(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in an image without torch."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_preparation_needs_no_torch(tmp_path: Path) -> None:
    given = files_of(tmp_path, materialise="wav")
    prepared = pod("prepare", *options(given))
    assert prepared.returncode == 0, prepared.stderr
    fetched = pod("fetch", *options(given))
    assert fetched.returncode == 0, fetched.stderr
    assert "base tiny is made by the training itself" in fetched.stderr
    refused = pod("stage", "train", f"--round-dir={adopted(given).path}")
    assert "the launcher has no torch" in refused.stderr, "the block works"


def test_a_pod_that_is_asked_to_stop_ends_at_once_with_a_code_that_is_retried(tmp_path: Path, last: Path) -> None:
    given = files_of(tmp_path)
    round_dir = adopted(given)
    with alone(round_dir):  # so it waits
        process = subprocess.Popen(
            [sys.executable, "-m", "caspi", "prepare", *options(given)], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        assert process.stderr.readline().startswith("r  sha256:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 75
    message = parse_last_message(last.read_text())
    assert message is not None
    assert "asked to stop" in message.line


# --- fetch: the real client against a stand-in of the hub

REVISION_FILES = {
    "config.json": b'{"model_type": "wav2vec2"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "README.md": b"not needed",
}


def hub_round(folder: Path, hub: ModelHub, files: dict[str, bytes] = REVISION_FILES) -> dict[str, str]:
    hub.repositories["owner/base"] = {"main": [Commit("model", files)]}
    hub.private["owner/base"] = False
    given = files_of(folder)
    text = Path(given["round"]).read_text()
    changed = text.replace("base: tiny", "base: owner/base").replace(
        "revision: null", f"revision: {hub.commits('owner/base')[-1].sha}", 1
    )
    assert changed != text
    Path(given["round"]).write_text(changed)
    return given | {"digest": load_round(Path(given["round"])).digest}


QUICK = "import caspi.execution.fetch as fetch; fetch.PATIENCE = (0.05, 0.05, 0.05)\n"


def fetched(given: dict[str, str], hub: ModelHub, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.replace("main()\n", QUICK + "main()\n"), "fetch", *options(given)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": hub.token, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


LOAD = """
import sys
from caspi.families.hub_folder import download
print(download("owner/base", sys.argv[1]))
"""


def test_after_fetch_training_needs_no_network(tmp_path: Path) -> None:
    with serve(ModelHub()) as hub:
        given = hub_round(tmp_path, hub)
        done = fetched(given, hub, tmp_path / "hf")
        assert done.returncode == 0, done.stderr
        asked = len(hub.requests)
        assert fetched(given, hub, tmp_path / "hf").returncode == 0
        assert len(hub.requests) == asked, "a second pod asks nothing"
    sha = hub.commits("owner/base")[-1].sha
    offline = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    loaded = subprocess.run([sys.executable, "-c", LOAD, sha], env=offline, capture_output=True, text=True, check=True)
    folder = Path(loaded.stdout.strip())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: data for name, data in REVISION_FILES.items() if name != "README.md"
    }


def test_a_bad_connection_is_tried_again_and_half_a_model_is_none(tmp_path: Path) -> None:
    with serve(ModelHub(faults={"GET .*model.safetensors": ["cut"] * 2, "GET /api/models": [503]})) as hub:
        given = hub_round(tmp_path, hub)
        done = fetched(given, hub, tmp_path / "hf")
        assert done.returncode == 0, done.stderr
        assert "next try in" in done.stderr
        sha = hub.commits("owner/base")[-1].sha
    [snapshot] = (tmp_path / "hf").glob(f"hub/models--owner--base/snapshots/{sha}")
    (snapshot / "model.safetensors").unlink()
    gone = fetched(given, hub, tmp_path / "hf")  # the hub is away, and the client would take what there is
    assert gone.returncode == 2
    assert "download failed (" in gone.stderr.splitlines()[-1]
    assert "run again to go on where it stopped" in gone.stderr


def test_four_pods_fetch_at_once(tmp_path: Path) -> None:
    with serve(ModelHub()) as hub:
        given = hub_round(tmp_path, hub)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": hub.token}
        command = [sys.executable, "-m", "caspi", "fetch", *options(given)]
        pods = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        ended = [(process.communicate(timeout=120)[1], process.returncode) for process in pods]
    assert [code for _, code in ended] == [0] * 4, ended
    assert hub.asked("GET .*/resolve/.*/model.safetensors") == 1, "one downloads, the others wait for it"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"HF_TOKEN": "hf_wrong"}, 2, "the hub does not let us read it (401); accept its terms, set HF_TOKEN"),
        ({"ROUND": "revision"}, 2, "no such revision"),
        ({"FREE": "1000000"}, 4, "no space left on "),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    tmp_path: Path, change: dict[str, str], code: int, says: str, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(ModelHub()) as hub:
        given = hub_round(tmp_path, hub)
        if "ROUND" in change:
            text = Path(given["round"]).read_text().replace(hub.commits("owner/base")[-1].sha, "a" * 40)
            Path(given["round"]).write_text(text)
            given["digest"] = load_round(Path(given["round"])).digest
        if "FREE" in change:
            monkeypatch.setattr(
                sys.modules[__name__],
                "QUICK",
                f"import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, {change['FREE']})\n",
            )
        done = fetched(given, hub, tmp_path / "hf", **{k: v for k, v in change.items() if k == "HF_TOKEN"})
    assert done.returncode == code, done.stderr
    assert says in done.stderr.splitlines()[-1]
    message = parse_last_message(last.read_text())
    assert message is not None
    assert (message.code, message.line) == (code, done.stderr.splitlines()[-1])


def test_a_parent_must_have_trained(tmp_path: Path, last: Path) -> None:
    given = files_of(tmp_path)
    text = Path(given["round"]).read_text()
    Path(given["round"]).write_text(text.replace("parent: null", "parent: first"))
    given["digest"] = load_round(Path(given["round"])).digest
    done = caspi("fetch", *options(given))
    assert done.code == 2
    assert 'no round "first" under' in done.err
    with pytest.raises(UserError):
        adopted(given).parent()
