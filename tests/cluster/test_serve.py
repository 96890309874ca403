"""A trained model behind charts/caspi-serve: the words and WER of the local run, and upgrades that lose nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspi.records.record import Record
from caspi.records.round_dir import RoundDir, open_round
from tests.cluster.kube import CASPI, HERE, HOME, HOUSE, Kube, give, make_claim, run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
Row = list[tuple[str, str, str]]

CHART = HOUSE / "charts/caspi-serve"
ROUND = HERE / "rounds/served.yaml"
READY = HOUSE / "images/serve/ready.py"
RELEASE = "served"
SMALL = {"cpu": "500m", "memory": "2Gi"}


@pytest.fixture(scope="module")
def local() -> RoundDir:
    """The round as `caspi run` makes it on this machine; trained once, benchmarked now."""
    folder = HOME / "served"
    folder.mkdir(parents=True, exist_ok=True)
    cluster = folder / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"data_root": str(HOUSE / "rounds")}))
    for old in folder.glob("served-*/benchmark"):
        shutil.rmtree(old)
    run(CASPI, "run", ROUND, "--cluster", cluster, "--runs", folder, seconds=800)
    found = open_round(max(folder.glob("served-*"), key=lambda path: path.stat().st_mtime))
    assert 0.05 < wer(found.succeeded("benchmark")) < 0.95, "a model that says nothing, or all, proves nothing"
    return found


@dataclass(frozen=True, slots=True)
class Served:
    """The round on a claim, served."""

    kube: Kube
    round_dir: Path
    """On this machine."""

    def test(self) -> tuple[int, str]:
        """`helm test`: its exit code, and all that it said, the log of the benchmark with it."""
        done = self.kube.helm("test", RELEASE, "--logs", "--timeout", "240s", check=False)
        return done.returncode, done.stdout + done.stderr

    def record(self) -> Record | None:
        return open_round(self.round_dir).record("benchmark")

    def pods(self) -> set[str]:
        selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=server"
        pods = self.kube.items("pods", selector)
        return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


@pytest.fixture(scope="module")
def served(kube: Kube, local: RoundDir, train_image: str) -> Iterator[Served]:
    """Installed, and ready; the round on its claim has no benchmark yet."""
    claim = make_claim(kube, "rounds")
    give(claim, (local.path, local.path.name), (HOUSE / "demo/test", "data/demo/test"))
    round_dir = claim / local.path.name
    for stage in ("benchmark", "report"):
        shutil.rmtree(round_dir / stage)
    (claim / "data/rounds").mkdir()  # what ../demo/test starts from
    cluster = round_dir / "cluster.yaml"
    cluster.write_text(yaml.safe_dump(yaml.safe_load(cluster.read_text()) | {"data_root": "/rounds/data/rounds"}))
    kube.helm("install", RELEASE, CHART, "--wait", "--timeout", "600s", "-f", "-", stdin=values(local, train_image))
    yield Served(kube, round_dir)
    kube.helm("uninstall", RELEASE, "--wait", check=False)


def values(local: RoundDir, image: str, **changes: Any) -> str:
    repository, digest = image.split("@")
    mine: dict[str, Any] = {
        "round": local.path.name,
        "image": {"repository": repository, "digest": digest},
        "resources": SMALL,
        "shm": "64Mi",
        "loadSeconds": 180,
        "benchmark": {"concurrency": 4, "resources": {"cpu": "250m", "memory": "1Gi"}, "deadline": 240},
    }
    return yaml.safe_dump(mine | changes)


def test_helm_test_makes_the_record_that_the_local_benchmark_made(
    served: Served, local: RoundDir, measured: Row
) -> None:
    code, said = served.test()
    assert code == 0, said
    record, expected = served.record(), local.succeeded("benchmark")
    assert record is not None and record.status == "succeeded"
    assert record.results == expected.results
    assert record.digest == expected.digest, "the same inputs, the same predictions to the byte, the same scores"
    assert record.circumstances.figures["server"].startswith(f"http://{RELEASE}.")
    assert "benchmark  WER unseen-phone" in said and "; recorded" in said
    assert (served.round_dir / "report/index.html").is_file()
    figures = record.circumstances.figures
    measured.append(
        ("benchmark by helm test", f"WER {wer(record):.4f}, RTFx {figures['rtfx']}", f"local: WER {wer(expected):.4f}")
    )


def test_again_it_asks_again_and_says_whether_the_answers_are_the_same(served: Served) -> None:
    assert served.record() is not None, "the record of the test before"
    before = (served.round_dir / "benchmark/record.json").read_bytes()
    code, said = served.test()
    assert code == 0, said
    assert "; the same 244 answers as in the record" in said
    assert (served.round_dir / "benchmark/record.json").read_bytes() == before


def test_a_folder_that_changed_under_the_server_is_not_benchmarked(served: Served) -> None:
    config = served.round_dir / "model/config.json"
    whole = config.read_bytes()
    config.write_bytes(whole + b"\n")
    try:
        code, said = served.test()
    finally:
        config.write_bytes(whole)
    assert code != 0
    assert "is another model" in said and "restart the server" in said


def test_an_upgrade_under_load_loses_no_request(served: Served, train_image: str, measured: Row) -> None:
    kube, before = served.kube, served.pods()
    kube.apply(asking(train_image, served.round_dir.name))
    until("questions are asked", lambda: "asking" in kube.kubectl("logs", "asking", check=False), 120, kube)
    kube.kubectl("rollout", "restart", f"deployment/{RELEASE}")
    kube.kubectl("rollout", "status", f"deployment/{RELEASE}", "--timeout=240s")
    until("the old pods are gone", lambda: not before & {pod["metadata"]["name"] for pod in kube.items("pods")}, 90)
    kube.kubectl("exec", "asking", "--", "touch", "/tmp/stop")
    until("the last answers", lambda: phase(kube, "asking") == "Succeeded", 60, kube)
    answers: dict[str, int] = json.loads(kube.kubectl("logs", "asking", "--tail=1"))
    assert before and served.pods() and not before & served.pods()
    assert len(answers) == 1 and next(iter(answers)).startswith("200 "), answers
    assert sum(answers.values()) > 50
    measured.append(("rolling restart under load", f"{sum(answers.values())} requests, 0 lost", "new connection each"))
    kube.kubectl("delete", "pod", "asking", "--wait=false")


def test_a_round_without_a_model_says_so(kube: Kube, local: RoundDir, served: Served, train_image: str) -> None:
    """What `kubectl describe pod` shows, without its log."""
    given = values(local, train_image, round="unknown-00000000", benchmark={"enabled": False})
    kube.helm("install", "unknown", CHART, "-f", "-", stdin=given)
    selector = "app.kubernetes.io/instance=unknown"

    def ended() -> str:
        states = [one for pod in kube.items("pods", selector) for one in pod["status"].get("containerStatuses", [])]
        ends = [{**one["state"], **one["lastState"]}.get("terminated", {}) for one in states]
        return next((end["message"] for end in ends if end.get("exitCode") == 2), "")

    message = until("its pod has ended", ended, 120, kube)
    assert message.strip() == "/rounds/unknown-00000000/model: no model there: it has no config.json"
    kube.helm("uninstall", "unknown", "--wait=false")


ASKING = """
import collections, http.client, json, os, sys, threading
source, host, model = sys.argv[1:]
ready = {}
exec(source, ready)
body = ready["form"]({"model": model, "response_format": "json"}, ready["clip"]())
headers = {"Content-Type": f"multipart/form-data; boundary={ready['BOUNDARY']}"}
seen = collections.Counter()

def ask():
    while not os.path.exists("/tmp/stop"):
        connection = http.client.HTTPConnection(host, 8000, timeout=60)
        try:
            connection.request("POST", "/v1/audio/transcriptions", body, headers)
            response = connection.getresponse()
            seen[f"{response.status} {response.read().decode()}"] += 1
        except Exception as error:
            seen[f"{type(error).__name__}: {error}"] += 1
        finally:
            connection.close()

print("asking", flush=True)
threads = [threading.Thread(target=ask) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(seen), flush=True)
"""


def asking(image: str, model: str) -> dict[str, Any]:
    """A pod that asks, never twice, until it is told to stop; then its log says how often it got what."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "asking"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "asking",
                    "image": image,
                    "command": ["python", "-c", ASKING, READY.read_text(), RELEASE, model],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def phase(kube: Kube, pod: str) -> str:
    return str(kube.get("pod", pod).get("status", {}).get("phase"))


def wer(record: Record) -> float:
    """Averaged over the sets."""
    return float(next(score["wer"]["value"] for score in record.results["scores"] if score["group"] == "average"))
