"""`caspi push`: the real client against a local stand-in that refuses, breaks off and counts; and the model card."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from caspi.errors import UserError
from caspi.files import digest, file_digest
from caspi.publish.card import model_card, model_files
from caspi.records.results import Adapters, AverageScore, BenchmarkResults, TrainResults
from caspi.records.round_dir import RoundDir, open_round
from tests.report_fixture import make_record, make_rounds
from tests.standins.model_hub import ModelHub, serve

MODEL = {
    "config.json": b'{"model_type": "qwen3_asr"}\n',
    "caspi.json": b'{"family": "qwen3-asr"}\n',
    "model.safetensors": bytes(range(256)) * 400,
}

# The client reads HF_ENDPOINT when it is imported, so it gets a process of its own.
PUSH = """
import json, sys
import caspi.publish.upload as pushing
from caspi.errors import CaspiError
from caspi.records.round_dir import open_round
from pathlib import Path
pushing.PAUSE_SECONDS = 0
folder, *questions = json.load(sys.stdin)
for question in questions:
    try:
        done = pushing.push(open_round(Path(folder)), *question)
        print(json.dumps([True, done.url, done.commit, done.changed]))
    except CaspiError as error:
        print(json.dumps([False, type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> RoundDir:
    """demo-r2 of the report's fixture with a model that its records know."""
    round_dir = make_rounds(tmp_path_factory.mktemp("rounds")).second
    with_model(round_dir)
    return round_dir


@pytest.fixture
def finished(original: RoundDir, tmp_path: Path) -> RoundDir:
    """A copy to do things with."""
    return open_round(shutil.copytree(original.path, tmp_path / "runs" / original.path.name))


def with_model(round_dir: RoundDir) -> None:
    round_dir.model.mkdir()
    for name, data in MODEL.items():
        (round_dir.model / name).write_bytes(data)
    outputs = tuple(f"../model/{name}" for name in sorted(MODEL))
    results = TrainResults.model_validate(round_dir.succeeded("train").results)
    trained = make_record(round_dir, "train", results, outputs=outputs)
    scored = BenchmarkResults.model_validate(round_dir.succeeded("benchmark").results)
    make_record(
        round_dir, "benchmark", scored.model_copy(update={"model": digest(model_files(trained))}),
        outputs=("predictions.jsonl",),
    )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    done: bool
    first: str
    """The address, or the kind of error."""
    second: str
    """The commit, or the message."""
    changed: bool = False


def push(hub: ModelHub, round_dir: RoundDir, *questions: tuple[object, ...], token: str = "hf_right") -> list[Answer]:
    before = state(round_dir)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(round_dir.path.parent / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", PUSH],
        input=json.dumps([str(round_dir.path), *questions]),
        env={**environment, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not token or token not in done.stdout + done.stderr
    assert state(round_dir) == before, "a push only reads"
    return [Answer(*json.loads(line)) for line in done.stdout.splitlines()]


def state(round_dir: RoundDir) -> dict[str, str]:
    return {
        str(path): file_digest(path) for path in round_dir.path.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_a_model_and_its_card_go_up_as_one_commit_once(finished: RoundDir) -> None:
    with serve(ModelHub()) as hub:
        first, again = push(hub, finished, ("owner/hebrew",), ("owner/hebrew",))
        assert first == Answer(True, f"{hub.url}/owner/hebrew/tree/main", hub.commits("owner/hebrew")[-1].sha, True)
        assert again == Answer(True, first.first, first.second, False), "the same content is no new commit"
    commits = hub.commits("owner/hebrew")
    assert len(commits) == 2
    assert commits[-1].summary == f"Round demo-r2, sha256:{finished.spec.digest[:12]}"
    card = commits[-1].files.pop("README.md").decode()
    del commits[-1].files[".gitattributes"]
    assert commits[-1].files == MODEL
    assert card == model_card(finished, "owner/hebrew")
    assert hub.asked("^PUT /storage/") == 1, "the large file went up once"
    assert not hub.private["owner/hebrew"]


def test_what_was_pushed_can_be_downloaded(finished: RoundDir, tmp_path: Path) -> None:
    """With the real client again, as a user of the model would."""
    code = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download(sys.argv[1]))"
    with serve(ModelHub()) as hub:
        assert push(hub, finished, ("owner/hebrew",))[0].done
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_TOKEN": "hf_right"}
        run = subprocess.run(
            [sys.executable, "-c", code, "owner/hebrew"], env=environment, capture_output=True, text=True, check=True
        )
    folder = Path(run.stdout.strip())
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL


def test_a_branch_and_a_private_repository(finished: RoundDir) -> None:
    with serve(ModelHub()) as hub:
        [answer] = push(hub, finished, ("owner/hebrew", True, "r2"))
        assert answer.done
        assert len(hub.commits("owner/hebrew")) == 1, "main stays"
        assert "README.md" in hub.commits("owner/hebrew", "r2")[-1].files
        assert hub.private["owner/hebrew"]
        hub.private["owner/hebrew"] = False
        [refused] = push(hub, finished, ("owner/hebrew", True))
    assert refused.second.startswith("owner/hebrew: is there already, and public")


FAULTS: dict[str, dict[str, list[int | str]]] = {
    "making the repository": {"POST /api/repos/create": [500]},
    "checking the card": {"POST /api/validate-yaml": [500]},
    "sending a large file": {"PUT /storage": ["cut"]},
    "asking what is there": {"POST .*/REPOSITORY/preupload": [503, 500]},
    "asking where to send": {"POST .*/REPOSITORY.git/info/lfs/objects/batch": [502]},
    "a busy hub": {"POST .*/REPOSITORY/commit/main": [500, 429]},
    "another commit at the same time": {"POST .*/REPOSITORY/commit/main": [412]},
    "a commit that did not arrive": {"POST .*/REPOSITORY/commit/main": ["cut"]},
    "a commit whose answer is lost": {"POST .*/REPOSITORY/commit/main": ["lost"]},
}


def test_what_passes_by_itself_is_tried_again(finished: RoundDir) -> None:
    """One repository for each fault."""
    names = {what: f"owner/{what.replace(' ', '-')}" for what in FAULTS}
    faults = {
        pattern.replace("REPOSITORY", names[what]): list(those)
        for what, patterns in FAULTS.items()
        for pattern, those in patterns.items()
    }
    with serve(ModelHub(faults=faults)) as hub:
        answers = push(hub, finished, *[(name,) for name in names.values()])
    for (what, name), answer in zip(names.items(), answers, strict=True):
        assert answer.done, (what, answer)
        assert len(hub.commits(name)) == 2, f"{what}: and there is one commit all the same"
        assert hub.commits(name)[-1].files["model.safetensors"] == MODEL["model.safetensors"], what
    assert not any(hub.faults.values()), "each fault was met"


def test_an_outage_ends_in_one_line_and_the_next_push_goes_on(finished: RoundDir) -> None:
    with serve(ModelHub(faults={"POST .*/commit/main": [500] * 5})) as hub:
        failed, done = push(hub, finished, ("owner/hebrew",), ("owner/hebrew",))
        assert (failed.done, failed.first) == (False, "StageFailed")
        assert "it answers 500, 5 times" in failed.second
        assert f"the model in {finished.model} is as it was" in failed.second
        assert "\n" not in failed.second
        assert done.changed
        assert hub.asked("^PUT /storage/") == 1, "what was sent before is not sent twice"


REFUSALS: dict[str, list[tuple[str, dict[str, list[int | str]], str]]] = {
    "": [("owner/hebrew", {}, "HF_TOKEN is not set")],
    "hf_wrong": [("owner/hebrew", {}, "the hub does not know HF_TOKEN (401)")],
    "hf_reader": [("owner/hebrew", {}, "HF_TOKEN may not write there (403)")],
    "hf_right": [
        ("others/hebrew", {}, "HF_TOKEN may not write there (403)"),
        ("owner/a", {"POST .*/owner/a/commit/main": [404]}, "there is no such owner or repository"),
        ("owner/b", {"POST .*/owner/b/commit/main": [403]}, "HF_TOKEN may not write there (403)"),
        ("owner/c", {"POST .*/owner/c.git/info/lfs/objects/batch": [413]}, "the hub refuses it (413)"),
        ("hebrew", {}, "write a repository as owner/name"),
        ("https://huggingface.co/owner/hebrew", {}, "write a repository as owner/name"),
    ],
}


@pytest.mark.parametrize("token", REFUSALS)
def test_refusals_are_one_line_and_not_tried_again(finished: RoundDir, token: str) -> None:
    faults = {pattern: list(those) for _, patterns, _ in REFUSALS[token] for pattern, those in patterns.items()}
    with serve(ModelHub(readers=("hf_reader",), faults=faults)) as hub:
        answers = push(hub, finished, *[(repository,) for repository, _, _ in REFUSALS[token]], token=token)
    for answer, (repository, _, says) in zip(answers, REFUSALS[token], strict=True):
        assert (answer.done, answer.first) == (False, "UserError"), answer
        assert says in answer.second, repository
        assert "\n" not in answer.second
    assert not any(faults.values()), "each was met once: none was tried again"
    assert hub.asked("POST /api/repos/create") <= len(answers)


def test_only_the_model_that_training_made_is_pushed(finished: RoundDir) -> None:
    def refused() -> str:
        with serve(ModelHub()) as hub:
            [answer] = push(hub, finished, ("owner/hebrew",))
        assert not hub.requests, "refused before anything is asked"
        assert (answer.done, answer.first) == (False, "UserError")
        return answer.second

    (finished.model / "notes.txt").write_text("not of the model", encoding="utf-8")
    with serve(ModelHub()) as hub:
        assert push(hub, finished, ("owner/hebrew",))[0].done
    assert "notes.txt" not in hub.commits("owner/hebrew")[-1].files

    weights = finished.model / "model.safetensors"
    weights.write_bytes(MODEL["model.safetensors"][:-1] + b"!")
    assert "model.safetensors is not what training wrote" in refused()
    weights.unlink()
    assert "model.safetensors is missing" in refused()
    (finished.folder("train") / "record.json").unlink()
    assert "stage train has not run; run `caspi stage train" in refused()


def test_a_benchmark_of_another_model_is_not_put_on_the_card(finished: RoundDir) -> None:
    scored = BenchmarkResults.model_validate(finished.succeeded("benchmark").results)
    make_record(finished, "benchmark", scored.model_copy(update={"model": "0" * 64}), outputs=("predictions.jsonl",))
    with pytest.raises(UserError, match="the benchmark is of another model"):
        model_card(finished, "owner/hebrew")
    (finished.folder("benchmark") / "record.json").unlink()
    assert "Not measured: the round was not benchmarked." in model_card(finished, "owner/hebrew")


def test_the_card_says_what_the_records_say(finished: RoundDir) -> None:
    from huggingface_hub import ModelCard

    text = model_card(finished, "owner/hebrew")
    card = ModelCard(text)
    assert card.data.language == ["he"]
    assert card.data.library_name == "qwen-asr"
    assert card.data.metrics == ["wer", "cer"]
    assert card.data.base_model is None, "a model from random weights has none"
    scores = BenchmarkResults.model_validate(finished.succeeded("benchmark").results).scores
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    for score in scores:
        if score.profile == "hebrew-fair" and score.group.startswith("set:"):
            name = score.group.removeprefix("set:")
            assert found[name, "wer"] == round(100 * score.wer.value, 2)
            assert found[name, "cer"] == round(100 * score.cer.value, 2)
            low, high = f"{100 * score.wer.low:.1f}", f"{100 * score.wer.high:.1f}"
            assert f"| {name} | {score.utterances} | {100 * score.wer.value:.1f} ({low} to {high}) |" in text
    for fact in (
        "hebrew-fair", "ivrit-leaderboard", finished.spec.digest, "Against round `demo-r1`", "Qwen3ASRModel",
        'from_pretrained("owner/hebrew")', "3f9c2d1e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d", "qwen-asr 0.0.6", "PROCEED",
        "| crowd | local files |", "941 of 1,000", "unknown",
    ):  # fmt: skip
        assert fact in text, fact
    for private in ("asr-build-01", str(finished.path), str(finished.data_root), "demo/crowd"):
        assert private not in text, private


def test_the_card_says_which_weights_were_chosen(finished: RoundDir) -> None:
    trained = finished.succeeded("train")
    assert "| chosen | step 600, by a dev WER of" in model_card(finished, "owner/hebrew")
    assert "| adapters | none |" in model_card(finished, "owner/hebrew")
    results = TrainResults.model_validate(trained.results)
    average = AverageScore(step=600, epoch=10, wer=0.1, cer=0.05, loss=0.4, of=[600, 540])
    adapters = Adapters(rank=16, alpha=32, matrices=8, parameters=1024)
    changed = results.model_copy(update={"chosen": "average", "average": average, "adapters": adapters})
    make_record(finished, "train", changed, outputs=tuple(trained.outputs))
    card = model_card(finished, "owner/hebrew")
    assert "| chosen | the average of the checkpoints of steps 600, 540, by a dev WER of" in card
    assert "| adapters | LoRA of rank 16, merged |" in card


def test_what_people_wrote_cannot_break_the_card(finished: RoundDir) -> None:
    """Domains, columns and languages are free text; the front matter stays YAML and a table keeps its columns."""
    spec = finished.spec
    source = spec.data.sources[0].model_copy(update={"path": None, "hub": "owner/x", "revision": "a|b](http://x)"})
    data = spec.data.model_copy(update={"sources": [source]})
    changed = RoundDir(finished.path, spec.model_copy(update={"data": data}), finished.cluster)
    text = model_card(changed, "owner/hebrew")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["datasets"] == ["owner/x"]
    (row,) = (line for line in body.splitlines() if line.startswith("| crowd |"))
    assert r"a\|b\](http://x)" in row
