"""The images as pods run them: no root, nothing to write to but /tmp, the home and the claim, no network asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from caspi.spec.load import load_round
from tests.cluster.kube import HOUSE, UID, Kube, give, make_claim, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# Of every image: who it runs as, where it can write, that it runs steps of a pipeline, and what it is made of.
SURROUNDINGS = """
set -eu
[ "$(id -u):$(id -g)" = 10001:10001 ]
for folder in / /opt/caspi /usr/local/bin /usr/share/caspi; do ! touch "$folder/stray" 2>/dev/null; done
touch /tmp/here "$HOME/here"
caspi --version
caspi plan /rounds/rounds/demo-r1.yaml >/dev/null
python /usr/share/caspi/executor.py
python -c '
import json
bill = json.load(open("/usr/share/caspi/sbom.cdx.json"))
names = {each["name"] for each in bill["components"]}
assert {"libc6", "numpy", "soundfile"} <= names, names
print("torch" if "torch" in names else "no torch")
'
"""
# What training needs beyond that; librosa compiles when it is first used, into NUMBA_CACHE_DIR.
TRAINING = """
python -c '
import librosa, numpy, peft, qwen_asr, soundfile, soxr, torch, transformers, wandb
from torch.utils.tensorboard import SummaryWriter
librosa.effects.trim(numpy.ones(16000, dtype=numpy.float32))
assert torch.version.cuda, "the wheel brings CUDA"
import caspi.families.ctc_backend, caspi.families.qwen3_backend
'
"""


@pytest.fixture(scope="module")
def rounds(kube: Kube) -> Path:
    folder = make_claim(kube, "rounds")
    give(folder, (HOUSE / "rounds", "rounds"), (HOUSE / "demo/crowd", "demo/crowd"), (HOUSE / "demo/test", "demo/test"))
    return folder


def run_pod(kube: Kube, name: str, image: str, **container: list[str]) -> str:
    """Run a pod to its end under the restricted profile; its log."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    mounts = {"rounds": "/rounds", "tmp": "/tmp", "home": "/home/caspi"}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,  # and no runAsUser: the image's own number counts
                    "fsGroup": UID,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "it",
                        "image": image,
                        **container,
                        "resources": {"requests": {"cpu": "300m", "memory": "512Mi"}},
                        "securityContext": security,
                        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in mounts.items()],
                    }
                ],
                "volumes": [
                    {"name": "rounds", "persistentVolumeClaim": {"claimName": "rounds"}},
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "home", "emptyDir": {}},
                ],
            },
        }
    )

    def ended() -> str | None:
        phase = str(kube.get("pod", name).get("status", {}).get("phase"))
        return phase if phase in ("Succeeded", "Failed") else None

    phase = until(f"pod {name} ends", ended, 600, kube)
    log = kube.kubectl("logs", name)
    kube.kubectl("delete", "pod", name, "--wait=false")
    assert phase == "Succeeded", log
    return log


def test_the_launcher_prepares_without_torch(kube: Kube, rounds: Path, launcher_image: str) -> None:
    log = run_pod(kube, "launcher", launcher_image, command=["sh", "-c", SURROUNDINGS + "helm version --short"])
    assert log.splitlines()[:2] == ["caspi 0.1.0", "no torch"]
    (rounds / "cluster.yaml").write_text("data_root: /rounds/rounds\n")
    small = rounds / "rounds/small.yaml"
    text = (HOUSE / "rounds/demo-r1.yaml").read_text()
    for now, then in {"15%": "80%", "25%": "90%", "35%": "90%", "leave_out: []": "leave_out: [leaked]"}.items():
        text = text.replace(now, then)  # whatever the data are, they may be trained on
    small.write_text(text.replace("{share: 100%, at_least: 200}", "{share: 1%, at_least: 20}"))
    digest = load_round(small).digest
    files = ["--round", "/rounds/rounds/small.yaml", "--cluster", "/rounds/cluster.yaml"]
    log = run_pod(kube, "prepare", launcher_image, args=["prepare", *files, "--runs", "/rounds", "--digest", digest])
    made = rounds / f"demo-r1-{digest[:8]}"
    record = json.loads((made / "export/record.json").read_text())
    assert record["status"] == "succeeded" and re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["circumstances"]["git"]), (
        log
    )
    assert (made / "audit/record.json").stat().st_uid == UID


def test_the_training_image_has_every_family(kube: Kube, rounds: Path, train_image: str) -> None:
    log = run_pod(kube, "train", train_image, command=["sh", "-c", SURROUNDINGS + TRAINING])
    assert log.splitlines()[:2] == ["caspi 0.1.0", "torch"]
