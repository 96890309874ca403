"""Locks: what is pinned, what is refused, and what `caspi verify-locks` finds, in real git repositories.

Helm is a program of this file here, which prints what it was given; tests/cluster/test_locks.py has the real one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from caspi.corpus import hub as hub_module
from caspi.files import digest, folder_digest
from caspi.locks import rendering
from caspi.locks.model import Lock, lock_text, plain, read_lock
from caspi.spec import load_cluster, load_round
from caspi.stages.export import inputs
from tests.command import Finished, caspi
from tests.standins.answering import answering
from tests.standins.corpora import rows, write_parquet
from tests.standins.hub import COMMIT, Hub, serve
from tests.test_bad_input import GOOD

HOUSE = Path(__file__).parents[1]
IMAGE = "registry.example.com/asr/caspi-train@sha256:" + "1" * 64
OCI = "oci://registry.example.com/charts/caspi-train@sha256:" + "3" * 64
CLUSTER: dict[str, Any] = {
    "data_root": "/rounds/data",
    "kubernetes": {"namespace": "asr", "images": {"train": IMAGE}, "secrets": {"huggingface": "huggingface/token"}},
}
HELM = r"""#!/bin/sh
# helm template NAME CHART --namespace NAMESPACE ...: digests of all that it was given, as an object
[ "$1" = template ] && [ "$4" = --namespace ] || exit 9
values=$(cat)
case $values in *unrenderable*)
    echo "Error: execution error at (caspi-train/templates/check.yaml:1:4): no" >&2; exit 1;; esac
case $3 in oci://*) cd "$OCI_CHART" || exit 9;; *) cd "$3" || exit 9;; esac
sum() { sha256sum | cut -c1-64; }
printf -- "---\n# Source: caspi-train/templates/round.yaml\nkind: ConfigMap\nname: %s\nnamespace: %s\n" "$2" "$5"
printf "values: %s\nchart: %s\n" "$(printf %s "$values" | sum)" "$(find . -type f | sort | xargs sha256sum | sum)"
"""


class Project:
    """A git repository with a round, a cluster file, a chart and data beside it."""

    def __init__(self, top: Path, data: Path) -> None:
        self.top, self.data = top, data
        self.round, self.cluster, self.lock = (
            top / name for name in ("rounds/tidy.yaml", "clusters/k.yaml", "rounds/tidy.lock.yaml")
        )

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", self.top, *who, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def commit(self, what: str = "Something") -> str:
        self.git("add", "-A")
        self.git("commit", "-qm", what)
        return self.git("rev-parse", "HEAD")

    def write(self, path: Path, values: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")

    def locks(self, *more: str) -> Finished:
        return caspi("lock", str(self.round), "--cluster", str(self.cluster), "--data-root", str(self.data), *more)

    def verified(self, *more: str) -> Finished:
        return caspi("verify-locks", *[str(path) for path in sorted(self.top.glob("rounds/*.lock.yaml"))], *more)

    def tampered(self, change: Callable[[dict[str, Any]], object]) -> None:
        """The lock with a change, written as `caspi lock` would."""
        values = plain(read_lock(self.lock))
        change(values)
        self.lock.write_text(lock_text(values), encoding="utf-8")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    project = Project(folder / "repository", folder / "data")
    project.write(project.round, GOOD)
    project.write(project.cluster, CLUSTER)
    project.write(project.top / "charts/caspi-train/Chart.yaml", {"name": "caspi-train", "version": "0.1.0"})
    (project.top / "charts/caspi-train/templates").mkdir()
    (project.top / "charts/caspi-train/templates/round.yaml").write_text("{{ .Values }}\n")
    (project.top / ".gitignore").write_text("/runs/\n")
    for name in ("crowd", "test"):
        write_parquet(project.data / name / "a.parquet", rows(3))
    project.git("init", "-q", "-b", "main")
    project.commit("A round")
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(template, tmp_path / "p")
    helm = tmp_path / "helm"
    helm.write_text(HELM)
    helm.chmod(0o755)
    monkeypatch.setenv("HELM", str(helm))
    monkeypatch.chdir(tmp_path / "p/repository")
    return Project(tmp_path / "p/repository", tmp_path / "p/data")


def test_a_lock_pins_everything(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCI_CHART", str(project.top / "charts/caspi-train"))
    done = project.locks("--chart", OCI)
    assert done.code == 0, done.err
    assert "written" in done.out
    lock = read_lock(project.lock)
    spec = load_round(project.round)
    assert (lock.round, lock.digest, lock.git) == ("tidy", spec.digest, project.git("rev-parse", "HEAD"))
    assert (lock.namespace, lock.images.train, lock.images.launcher) == ("asr", IMAGE, None)
    assert lock.chart.digest == folder_digest(project.top / "charts/caspi-train")
    assert lock.chart.version == "0.1.0"
    assert lock.chart.oci
    assert f"{lock.chart.oci.repository}@{lock.chart.oci.digest}" == OCI
    assert [(one.name, one.where, one.source) for one in lock.data] == [
        ("crowd", "path", "crowd"),
        ("test", "path", "test"),
    ]
    assert (lock.model.base, lock.model.manifest, lock.parent) == ("tiny", None, None)
    assert digest(yaml.safe_load(lock.values["round"]["file"])) == spec.digest
    told = caspi("submit", str(project.round), "-c", str(project.cluster), "--dry-run", "--json")
    assert json.loads(told.out) == lock.values, "what a person submits is what a merge starts"


def test_data_is_pinned_by_what_the_export_records(project: Project, tmp_path: Path) -> None:
    from caspi.records.round_dir import create

    project.locks()
    cluster = load_cluster(project.cluster).model_copy(update={"data_root": str(project.data)})
    recorded = inputs(create(tmp_path / "runs", load_round(project.round), cluster, project.top))
    for one in read_lock(project.lock).data:
        assert one.manifest == recorded[f"data {one.name}"]
    before = read_lock(project.lock).data
    project.lock.unlink()
    write_parquet(project.data / "crowd" / "a.parquet", rows(4))
    project.locks()
    after = read_lock(project.lock).data
    assert [old.manifest == new.manifest for old, new in zip(before, after, strict=True)] == [False, True]


def test_more_values_are_locked_too(project: Project) -> None:
    """What the cluster file has no word for; committed like everything else, and never the round itself."""
    more = project.top / "clusters/gate.yaml"
    project.write(more, {"preparation": {"resources": {"cpu": "500m", "memory": "2Gi"}}, "deadline": 7200})
    assert "not committed: clusters/gate.yaml" in project.locks("--values", str(more)).err
    project.commit("Values")
    done = project.locks("--values", str(more))
    assert done.code == 0, done.err
    values = read_lock(project.lock).values
    assert values["preparation"]["resources"]["cpu"] == "500m" and values["deadline"] == 7200
    project.commit("The lock")
    assert project.verified().code == 0
    assert "there with another values, rendered" in project.locks().err
    project.write(more, {"round": {"name": "other"}})
    project.commit("Another round by the back door")
    assert "round: follows from the round file" in project.locks("--values", str(more)).err


def test_the_same_again_is_unchanged(project: Project) -> None:
    assert json.loads(project.locks("--json").out)["outcome"] == "written"
    text = project.lock.read_bytes()
    assert json.loads(project.locks("--json").out)["outcome"] == "unchanged"
    project.commit("The lock")
    (project.top / "README.md").write_text("more\n")
    project.commit("Something else")
    done = project.locks()
    assert (done.code, project.lock.read_bytes()) == (0, text), done.err
    assert "unchanged" in done.out


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"round": {**GOOD, "seed": 7}}, "digest, values, rendered"),
        ({"cluster": {**CLUSTER, "memory": "6GiB"}}, "values, rendered"),
        ({"chart": "{{ .Values }} # more\n"}, "chart, rendered"),
    ],
)
def test_a_lock_that_is_there_is_never_changed(project: Project, changes: dict[str, Any], names: str) -> None:
    project.locks()
    text = project.lock.read_bytes()
    project.commit("The lock")
    project.write(project.round, changes.get("round", GOOD))
    project.write(project.cluster, changes.get("cluster", CLUSTER))
    (project.top / "charts/caspi-train/templates/round.yaml").write_text(changes.get("chart", "{{ .Values }}\n"))
    project.commit("A change")
    done = project.locks()
    assert (done.code, project.lock.read_bytes()) == (2, text)
    assert f"is there with another {names}; merged locks never change: give the round a new name" in done.err
    assert done.err.count("\n") == 1


def dirty_ignored(project: Project) -> None:
    (project.top / ".gitignore").write_text("/runs/\n/clusters/\n")
    project.git("rm", "-rq", "--cached", "clusters")
    project.commit("Clusters are ours")


def no_chart(project: Project) -> None:
    shutil.rmtree(project.top / "charts")
    project.commit("No chart")


def outside(project: Project) -> None:
    project.cluster = project.cluster.rename(project.data / "k.yaml")
    project.commit("Elsewhere")


def no_images(project: Project) -> None:
    project.write(project.cluster, {"data_root": "/rounds/data", "kubernetes": {}})
    project.commit("No images")


def other_name(project: Project) -> None:
    project.round = project.round.rename(project.round.with_name("other.yaml"))
    project.commit("Another name")


def no_parent(project: Project) -> None:
    project.write(project.round, {**GOOD, "parent": "before"})
    project.commit("A parent")


def too_large(project: Project) -> None:
    project.write(project.cluster, {**CLUSTER, "memory": "1 MB"})
    project.commit("A small machine")


REFUSED: list[tuple[Callable[[Project], object], str]] = [
    (lambda p: p.round.write_text(p.round.read_text() + "\n"), "not committed: rounds/tidy.yaml; commit first"),
    (lambda p: (p.top / "notes.txt").write_text("x"), "not committed: notes.txt; commit first"),
    (lambda p: (p.top / "charts/caspi-train/new.yaml").write_text("x"), "not committed: charts/caspi-train/new.yaml;"),
    (lambda p: (p.top / "charts/caspi-train/Chart.yaml").unlink(), "not committed: charts/caspi-train/Chart.yaml;"),
    (lambda p: [(p.top / f"{n}.txt").write_text("x") for n in range(11)], " and 3 more; commit first"),
    (lambda p: shutil.rmtree(p.top / ".git"), "not in a git repository"),
    (lambda p: p.git("update-ref", "-d", "HEAD"), "nothing is committed yet"),
    (dirty_ignored, "k.yaml: is ignored by git"),
    (no_chart, "charts/caspi-train is not in commit"),
    (outside, "k.yaml: lies outside of the repository"),
    (no_images, "kubernetes.images: missing; pods need their image by digest"),
    (other_name, "other.yaml: holds the round tidy: name the file tidy.yaml"),
    (no_parent, 'parent = "before": there is no'),
    (too_large, "does not fit"),
    (lambda p: shutil.rmtree(p.data / "test"), 'benchmark.sets[0].path = "test": not on this machine (looked for'),
]


@pytest.mark.parametrize(("change", "says"), REFUSED)
def test_what_is_refused(project: Project, change: Callable[[Project], object], says: str) -> None:
    change(project)
    done = project.locks()
    assert done.code == 2, done.out
    assert says in done.err
    assert done.err.count("\n") == 1, "one line"
    assert not project.lock.exists()


def test_locks_do_not_make_a_tree_unclean(project: Project) -> None:
    (project.top / "rounds/another.lock.yaml").write_text("of another round, not merged yet\n")
    assert project.locks().code == 0
    assert project.git("status", "--porcelain").count("\n") == 1, "nothing but the two locks"


def test_data_of_the_claim_has_to_be_here(project: Project) -> None:
    done = caspi("lock", str(project.round), "--cluster", str(project.cluster))
    assert done.code == 2
    assert done.err.count("say where the same files lie here: --data-root DIR") == 2


def test_absolute_paths_on_the_claim_are_found_below_the_data_root(project: Project) -> None:
    project.locks()
    relative = read_lock(project.lock).data
    project.lock.unlink()
    spec = yaml.safe_load(yaml.safe_dump(GOOD))
    spec["data"]["sources"][0]["path"] = "/rounds/data/crowd"
    project.write(project.round, spec)
    project.commit("Absolute")
    assert project.locks().code == 0
    absolute = read_lock(project.lock).data
    assert [one.manifest for one in absolute] == [one.manifest for one in relative]
    assert absolute[0].source == "/rounds/data/crowd"
    assert project.verified().code == 0


def test_the_parent_is_pinned(project: Project) -> None:
    project.write(project.top / "rounds/before.yaml", {**GOOD, "round": "before"})
    project.write(project.round, {**GOOD, "parent": "before"})
    project.commit("A parent")
    assert project.locks().code == 0
    parent = read_lock(project.lock).parent
    assert parent
    assert (parent.round, parent.digest) == ("before", load_round(project.top / "rounds/before.yaml").digest)
    assert project.verified().code == 0
    project.tampered(lambda v: moved(v, parent__digest=OTHER))
    done = project.verified()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "parent.digest is 222222222222, and rounds/before.yaml of commit" in done.err


def test_a_parent_that_was_changed_after_its_lock_is_refused(project: Project) -> None:
    before = project.top / "rounds/before.yaml"
    project.write(before, {**GOOD, "round": "before"})
    project.write(project.round, {**GOOD, "parent": "before"})
    project.commit("A parent")
    assert caspi("lock", str(before), "-c", str(project.cluster), "--data-root", str(project.data)).code == 0
    assert project.locks().code == 0
    project.lock.unlink()
    project.write(before, {**GOOD, "round": "before", "seed": 7})
    project.commit("Another parent")
    done = project.locks()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "is not the round that before.lock.yaml locked" in done.err


def test_a_local_base_model_is_pinned_by_its_files(project: Project) -> None:
    base = project.data / "models/base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    values = yaml.safe_load(yaml.safe_dump(GOOD))
    values["model"]["base"] = "/rounds/data/models/base"
    project.write(project.round, values)
    project.commit("A base")
    assert project.locks().code == 0
    assert read_lock(project.lock).model.manifest == folder_digest(base)
    project.lock.unlink()
    shutil.rmtree(base)
    done = project.locks()
    assert (done.code, "model.base" in done.err, "--data-root DIR" in done.err) == (2, True, True)


@pytest.mark.parametrize(
    "reference",
    [
        "registry.example.com/caspi-train@sha256:" + "3" * 64,
        "oci://registry.example.com/caspi-train:0.1.0",
        "oci://registry.example.com/other@sha256:" + "3" * 64,
        "oci://registry.example.com/caspi-train@sha256:33",
    ],
)
def test_a_chart_in_a_registry_is_named_by_digest(project: Project, reference: str) -> None:
    done = project.locks("--chart", reference)
    assert (done.code, "write oci://registry/path/caspi-train@sha256:..." in done.err) == (2, True)
    assert not project.lock.exists()


def test_a_chart_in_a_registry_is_the_one_that_is_locked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project.top / "charts/caspi-train", project.data / "another")
    (project.data / "another/templates/more.yaml").write_text("more\n")
    monkeypatch.setenv("OCI_CHART", str(project.data / "another"))
    done = project.locks("--chart", OCI)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "makes other objects than charts/caspi-train of this commit; push that" in done.err
    assert not project.lock.exists()


def test_secrets_are_references(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "KFP_TOKEN"):
        monkeypatch.setenv(name, f"planted-{name}")
    assert project.locks().code == 0
    assert b"planted" not in project.lock.read_bytes()
    assert read_lock(project.lock).values["secrets"] == {"huggingface": {"name": "huggingface", "key": "token"}}


# -- the hub ----------------------------------------------------------------------------------------------------------

LFS = "a" * 64


class ModelHub(BaseHTTPRequestHandler):
    """A model repository whose file list comes in two pages, as long ones do."""

    protocol_version = "HTTP/1.1"
    blob = "b" * 40

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/owner/base/tree/{COMMIT}"):
            second = "cursor=2" in self.path
            large = {"oid": "c" * 40, "size": 999, "lfs": {"oid": LFS, "size": 999, "pointerSize": 130}}
            entry = (
                {"path": "model.safetensors", **large}
                if second
                else {"path": "config.json", "size": 2, "oid": self.blob}
            )
            body = json.dumps([{"type": "file", **entry}, {"type": "directory", "path": "d", "oid": "d" * 40}]).encode()
            self.send_response(200)
            if not second:
                host = self.headers["Host"]
                self.send_header("Link", f'<http://{host}/api/models/owner/base/tree/{COMMIT}?cursor=2>; rel="next"')
        else:
            body = b"no"
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def apart(project: Project, url: str) -> subprocess.CompletedProcess[str]:
    """`caspi lock` in a process of its own, as a shell starts it."""
    home = project.top.parent / "hf"
    env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "hf_planted"}
    command = [sys.executable, "-m", "caspi", "lock", str(project.round), "--cluster", str(project.cluster)]
    done = subprocess.run(
        [*command, "--data-root", str(project.data)], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "hf_planted" not in done.stdout + done.stderr
    assert not (home / "hub").exists(), "nothing is downloaded"
    return done


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say where the hub is to the client in this process, which read HF_ENDPOINT when it was imported."""
    monkeypatch.setattr(hub_module, "PAUSE_SECONDS", 0)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


def from_hub(project: Project, revision: str = COMMIT, **source: Any) -> None:
    values = yaml.safe_load(yaml.safe_dump(GOOD))
    values["data"]["sources"] = [{"name": "crowd", "hub": "owner/crowd", "revision": revision, **source}]
    project.write(project.round, values)
    project.commit("From the hub")


def test_hub_data_is_pinned_by_what_is_read(project: Project, at: Callable[[str], None]) -> None:
    files = {"data/a.parquet": b"PAR1", "data/b.parquet": b"PAR2", "other.parquet": b"PAR3", "data/README.md": b"about"}
    from_hub(project, files="data/*")
    with serve(Hub(dict(files), failing=1)) as hub:
        done = apart(project, hub.url)
        assert done.returncode == 0, done.stderr
        assert hub.tokens == {"Bearer hf_planted"}
        first = read_lock(project.lock).data[0]
        read = [[name, 4, hashlib.sha1(files[name]).hexdigest()] for name in ("data/a.parquet", "data/b.parquet")]
        assert first.manifest == digest(read)
        assert (first.where, first.source, first.revision) == ("hub", "owner/crowd", COMMIT)
        at(hub.url)
        for name, moves in (("other.parquet", False), ("data/README.md", False), ("data/a.parquet", True)):
            project.lock.unlink()
            hub.files = {**files, name: b"PARX"}
            assert project.locks().code == 0
            assert (read_lock(project.lock).data[0].manifest != first.manifest) == moves, name
    assert project.verified().code == 0, "verified without the hub"


HUB_REFUSES = [
    ({"revision": "main"}, {}, f'"main" is no full commit and may move; it is {COMMIT} now: write that'),
    ({"revision": "v9"}, {}, "no such repository, revision or file on the hub"),
    ({"revision": "f" * 40}, {}, "no such repository, revision or file on the hub"),
    ({"files": "*.wav"}, {}, "holds no file that the round reads; it has a.parquet"),
    ({}, {"token": "hf_right"}, "the hub does not let us read it (401) and HF_TOKEN is not set"),
]


@pytest.mark.parametrize(("source", "hub", "says"), HUB_REFUSES)
def test_what_the_hub_does_not_give(
    project: Project, at: Callable[[str], None], source: dict[str, str], hub: dict[str, Any], says: str
) -> None:
    from_hub(project, **source)
    with serve(Hub({"a.parquet": b"PAR1"}, **hub)) as there:
        at(there.url)
        done = project.locks()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert says in done.err
    assert "data.sources[0]: owner/crowd@" in done.err
    assert not project.lock.exists()


def test_a_hub_out_of_reach_is_one_line(project: Project, at: Callable[[str], None]) -> None:
    from_hub(project)
    with serve(Hub({"a.parquet": b"PAR1"})) as there:
        at(there.url)
    done = project.locks()
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert f"{there.url} is out of reach (" in done.err
    assert "then run the same command again" in done.err


def test_a_base_model_is_pinned_by_all_pages_of_its_files(project: Project, at: Callable[[str], None]) -> None:
    values = yaml.safe_load(yaml.safe_dump(GOOD))
    values["model"] |= {"base": "owner/base", "revision": COMMIT}
    project.write(project.round, values)
    project.commit("A real base")
    with answering(ModelHub) as url:
        at(url)
        done = project.locks()
    assert done.code == 0, done.err
    model = read_lock(project.lock).model
    assert (model.base, model.revision) == ("owner/base", COMMIT)
    assert model.manifest == digest([["config.json", 2, ModelHub.blob], ["model.safetensors", 999, LFS]])


# -- verify-locks -----------------------------------------------------------------------------------------------------


def moved(lock: dict[str, Any], **changes: Any) -> None:
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = lock
        for part in parents:
            place = place[part]
        place[last] = value


def another_round(lock: dict[str, Any]) -> None:
    lock["values"]["round"]["file"] = lock["values"]["round"]["file"].replace("global_batch: 8", "global_batch: 9")


def another_round_digested(lock: dict[str, Any]) -> None:
    another_round(lock)
    lock["digest"] = lock["values"]["round"]["digest"] = digest(yaml.safe_load(lock["values"]["round"]["file"]))


OTHER = "2" * 64
TAMPERED: list[tuple[Callable[[dict[str, Any]], object], list[str]]] = [
    (lambda v: moved(v, rendered=OTHER), [f"rendered is {OTHER[:12]}, and the chart makes "]),
    (lambda v: moved(v, values__workers__resources__cpu="64"), ["one of them was changed"]),
    (lambda v: moved(v, namespace="prod"), ["one of them was changed"]),
    (lambda v: moved(v, digest=OTHER), ["values.round.digest is", "does not digest to 222222222222", "digests to"]),
    (another_round, ["values.round.file does not digest to", "one of them was changed"]),
    (another_round_digested, ["rounds/tidy.yaml of commit", "one of them was changed"]),
    (lambda v: moved(v, images__train=IMAGE.replace("1" * 64, OTHER)), ["values.image is registry"]),
    (lambda v: moved(v, values__image__digest=f"sha256:{OTHER}"), ["values.image is", "one of them was changed"]),
    (lambda v: moved(v, images__launcher=IMAGE), ["values.launcher is None, and images say registry"]),
    (lambda v: moved(v, chart__digest=OTHER), ["chart.digest is 222222222222, and "]),
    (lambda v: moved(v, chart__version="9.9.9"), ["chart.version is 9.9.9, and 0.1.0 at commit"]),
    (lambda v: moved(v, git="0" * 40), ["git: commit 000000000000 is not in this clone; push it"]),
    (lambda v: v["data"].pop(), ["data: not the sources and test sets of the round"]),
    (lambda v: moved(v, model__base="owner/base", model__revision=COMMIT), ["model is owner/base@0123456789abcdef"]),
    (
        lambda v: moved(v, parent={"round": "before", "digest": OTHER}),
        ["parent is before, not None", "has no rounds/bef"],
    ),
    (lambda v: moved(v, values__cluster="unrenderable: 1"), ["the chart does not render: Error: execution error"]),
    (lambda v: moved(v, data="none"), ['data = "none": it should be a valid list']),
    (lambda v: moved(v, more=1), ["more: no such field"]),
    (lambda v: v.update(lock=2), ["lock = 2: unknown; it is one of 1"]),
]


@pytest.mark.parametrize(("change", "says"), TAMPERED)
def test_a_lock_that_does_not_agree_is_found(
    project: Project, change: Callable[[dict[str, Any]], object], says: list[str]
) -> None:
    project.locks()
    assert project.verified().code == 0
    project.tampered(change)
    done = project.verified()
    assert done.code == 2
    assert len(done.err.splitlines()) == len(says), done.err
    for line, part in zip(done.err.splitlines(), says, strict=True):
        assert line.startswith(str(project.lock)), "each line names the file"
        assert part in line


EDITS: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text + "# a remark\n", "it was edited"),
    (lambda text: text.replace("namespace: asr", "namespace: prod\nnamespace: asr"), "it was edited"),
    (lambda text: text.replace("namespace: asr", "namespace:  asr"), "it was edited"),
    (lambda text: "", "expected a mapping of fields, got nothing"),
    (lambda text: "{", "not valid YAML"),
    (lambda text: text.replace("round: tidy\n", "round: Tidy\n", 1), 'round = "Tidy": use lower-case letters'),
]


@pytest.mark.parametrize(("edit", "says"), EDITS)
def test_only_what_caspi_lock_writes_is_a_lock(project: Project, edit: Callable[[str], str], says: str) -> None:
    """A key that stands twice means the last one here, and may mean the first one to Argo CD."""
    project.locks()
    text = project.lock.read_text("utf-8")
    assert edit(text) != text
    project.lock.write_text(edit(text), encoding="utf-8")
    done = project.verified()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert says in done.err


def merged(project: Project) -> None:
    """A lock on main, and a branch off it."""
    assert project.locks().code == 0
    project.commit("The lock of tidy")
    project.git("checkout", "-qb", "work")


def test_merged_locks_never_change(project: Project) -> None:
    merged(project)
    assert project.verified("--base", "main").code == 0
    project.tampered(
        lambda v: moved(v, model__base="tiny", chart__oci={"repository": "oci://a.b/c", "digest": f"sha256:{OTHER}"})
    )
    assert project.verified().code == 0, "by itself it is in order"
    done = project.verified("--base", "main")
    assert done.code == 2
    assert done.err == (
        "rounds/tidy.lock.yaml: differs from main; merged locks never change: restore it, and give the changed round a "
        "new name\n"
    )
    other = project.lock.with_name("other.lock.yaml")
    other.write_text("x")
    found = caspi("verify-locks", str(other), "--base", "main").err
    assert "rounds/tidy.lock.yaml: differs from main" in found, "also when it is not among the files that are named"


def test_a_lock_may_be_deleted_but_not_renamed_or_copied(project: Project) -> None:
    merged(project)
    text = project.lock.read_text("utf-8")
    project.lock.unlink()
    done = project.verified("--base", "main")
    assert (done.code, done.out) == (0, "0 locks: nothing to check\n")
    assert caspi("verify-locks", str(project.lock), "--base", "main").code == 0, "deleted, and named by a CI's diff"
    assert "no such lock" in caspi("verify-locks", str(project.lock)).err
    renamed = project.lock.with_name("again.lock.yaml")
    renamed.write_text(text, encoding="utf-8")
    lines = project.verified("--base", "main").err.splitlines()
    assert len(lines) == 2
    assert "locks tidy, and so does tidy.lock.yaml, which is gone from main: a lock is not renamed" in lines[0]
    assert "its file is called tidy.lock.yaml" in lines[1]
    project.lock.write_text(text, encoding="utf-8")
    lines = project.verified("--base", "main").err.splitlines()
    assert any("a round has one lock" in line for line in lines)
    renamed.unlink()
    project.lock.rename(project.top / "elsewhere.yaml")
    project.lock.symlink_to(project.top / "elsewhere.yaml")
    assert "is a link; a lock is a file of its own" in project.verified("--base", "main").err


def test_a_name_that_was_locked_once_stays_that_lock(project: Project) -> None:
    """Deleted by one merge, it may come back as it was, and not as another: the job of the first is still there."""
    merged(project)
    text = project.lock.read_text("utf-8")
    project.lock.unlink()
    project.commit("Deleted")
    project.git("branch", "-f", "main")
    project.lock.write_text(text, encoding="utf-8")
    assert project.verified("--base", "main").code == 0, "as it was"
    project.lock.unlink()
    project.write(project.round, {**GOOD, "seed": 7})
    project.commit("Another round under the old name")
    project.git("branch", "-f", "main")
    assert project.locks().code == 0
    done = project.verified("--base", "main")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "main had another lock of this name before: what it started is still there" in done.err


def test_a_later_chart_does_not_disturb(project: Project) -> None:
    merged(project)
    (project.top / "charts/caspi-train/templates/round.yaml").write_text("all else\n")
    project.write(project.round, {**GOOD, "seed": 8})
    project.commit("Another chart, another round file")
    (project.top / "charts/caspi-train/templates/round.yaml").write_text("not even committed\n")
    done = project.verified("--base", "main")
    assert (done.code, done.out) == (0, "1 locks: all in order\n"), done.err


def test_a_shallow_clone_is_told_what_to_fetch(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged(project)
    clone = tmp_path / "clone"
    source = project.top.as_uri()
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, clone], check=True, capture_output=True)
    monkeypatch.chdir(clone)
    done = caspi("verify-locks")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "is not in this clone; fetch the whole history (actions/checkout: fetch-depth: 0; GitLab" in done.err
    done = caspi("verify-locks", "--base", "origin/main")
    assert (done.code, "--base origin/main: no such commit in this clone; fetch the whole" in done.err) == (2, True)
    subprocess.run(["git", "fetch", "-q", "--unshallow"], check=True, capture_output=True)
    assert caspi("verify-locks").code == 0


def test_a_commit_that_a_squash_would_lose_is_refused(project: Project) -> None:
    project.git("checkout", "-qb", "work")
    (project.top / "README.md").write_text("a change that the round comes with\n")
    project.commit("On the branch only")
    assert project.locks().code == 0
    project.commit("Its lock")
    assert project.verified().code == 0
    done = project.verified("--base", "main")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert (
        "is not in the history of main; a squash loses it: merge the round first, then lock it from there" in done.err
    )
    text = project.lock.read_text("utf-8")
    project.git("checkout", "-q", "main")
    project.lock.write_text(text, encoding="utf-8")
    assert "is not in the history of HEAD" in project.verified().err, "and this is what a squash leaves"


def test_all_problems_at_once_and_for_machines(project: Project) -> None:
    project.locks()
    project.tampered(lambda v: moved(v, rendered=OTHER, chart__digest=OTHER, digest=OTHER))
    (project.top / "rounds/broken.lock.yaml").write_text("{")
    done = project.verified("--json")
    told = json.loads(done.out)
    assert done.code == 2
    assert len(told["locks"]) == 2
    assert len(told["problems"]) == 6
    assert caspi("verify-locks", "--base", "nowhere").err.startswith("--base nowhere: no such commit")


# -- the format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((HOUSE / "tests/data").glob("*.lock.yaml")), ids=lambda path: path.name)
def test_locks_of_before_stay_readable(path: Path) -> None:
    """Merged locks are never rewritten: what wrote format 1 once is read for ever, and is its own bytes."""
    lock = read_lock(path)
    assert isinstance(lock, Lock)
    assert lock_text(plain(lock)) == path.read_text("utf-8")


def test_digests_are_text_to_every_reader() -> None:
    """Unquoted, this commit is a number to readers of YAML 1.2."""
    commit = "1234567890123456789012345678901234567e12"
    text = lock_text({"git": commit})
    assert f'git: "{commit}"' in text


def test_helms_own_whitespace_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [
        "---\n# Source: a\nkind: A\nx: {b: 1, a: 2001-01-01}\n---\n# Source: b\nkind: B\n",
        "kind: B\n---\n---\nx:\n  a: 2001-01-01\n  b: 1\nkind: A\n",
        "---\nkind: B\n---\nkind: A\nx: {b: 1, a: 2001-01-02}\n",
    ]
    found = []
    for number, output in enumerate(outputs):
        helm = tmp_path / f"helm{number}"
        (tmp_path / f"out{number}").write_text(output)
        helm.write_text(f"#!/bin/sh\ncat >/dev/null\ncat {tmp_path}/out{number}\n")
        helm.chmod(0o755)
        monkeypatch.setenv("HELM", str(helm))
        found.append(rendering.rendered(tmp_path, "r", "n", {}))
    assert found[0] == found[1] != found[2]
    assert re.fullmatch(r"[0-9a-f]{64}", found[0])
