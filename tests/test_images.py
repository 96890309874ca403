"""The images as files: what Dockerfiles say, that pins agree, what images/build and tests/cluster/podman do.

Needs no container tool.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "images"
NAMES = ("train", "launcher", "serve")
EXTRAS = {"train": ["train", "cluster", "tracking"], "launcher": ["cluster"]}
LOCKED = ROOT / "constraints.txt"
PINS = {"train": LOCKED, "launcher": LOCKED, "serve": IMAGES / "serve/constraints.txt"}
STEPS = sorted(path for path in (IMAGES / "steps").iterdir() if path.suffix == "" and path.is_file())
SCRIPTS = [*STEPS, IMAGES / "build", IMAGES / "base-from-debootstrap"]


@dataclass(frozen=True, slots=True)
class Instruction:
    stage: str
    name: str
    text: str


def parse(dockerfile: str) -> list[Instruction]:
    """The instructions of a Dockerfile, each with the stage that it is in."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    stage, found = "", []
    for line in re.sub(r"\s*\\\n\s*", " ", lines).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        if name == "FROM":
            stage = text.rpartition(" AS ")[2]
        found.append(Instruction(stage, name, text.strip()))
    return found


def of(name: str) -> list[Instruction]:
    return parse((IMAGES / name / "Dockerfile").read_text())


def last_stage(name: str) -> list[Instruction]:
    instructions = of(name)
    return [each for each in instructions if each.stage == instructions[-1].stage]


def step(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, IMAGES / "steps" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(file: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==([^ ]+)", file.read_text(), re.MULTILINE))


# --- Dockerfiles


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_begins_with_an_argument_or_another_stage(name: str) -> None:
    instructions = of(name)
    stages = [each.stage for each in instructions if each.name == "FROM"]
    for each in instructions:
        if each.name == "FROM":
            begins = each.text.split()[0]
            assert begins.startswith("${") or begins in stages, each.text
    assert instructions[0] == Instruction("", "ARG", "BASE_IMAGE=docker.io/library/debian:bookworm-slim")


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_a_user_that_is_a_number(name: str) -> None:
    # Kubernetes can't tell of a name that it is not root: runAsNonRoot refuses it
    users = [each.text for each in last_stage(name) if each.name == "USER"]
    assert users == ["10001:10001"]


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_the_last_layer(name: str) -> None:
    files = [each for each in last_stage(name) if each.name in ("COPY", "ADD")]
    assert files[-1].text == {"serve": "images/serve/ready.py /opt/ready.py"}.get(name, "--from=code /layer /")
    after = last_stage(name)[last_stage(name).index(files[-1]) + 1 :]
    assert [each.name for each in after if each.name == "RUN"] == ["RUN"]  # the first use of it, which writes nothing
    assert all(" src" not in each.text for each in files)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_labelled(name: str) -> None:
    labels = " ".join(each.text for each in of(name) if each.name == "LABEL")
    for key in ("title", "description", "version", "revision", "source", "licenses"):
        assert f"org.opencontainers.image.{key}=" in labels
    assert f'title="caspi-{name}"' in labels


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_that_builds_it_stays(name: str) -> None:
    for each in of(name):
        assert not re.search(r"https?://|index-url|--trusted|cert=", each.text), each.text
        if each.name in ("ENV", "ARG", "LABEL"):
            assert not re.search(r"TOKEN|SECRET|PASSWORD|_KEY|PROXY|INDEX", each.text, re.IGNORECASE), each.text
        assert each.name != "ADD"


@pytest.mark.parametrize("name", NAMES)
def test_what_reaches_for_packages_is_lent_the_settings(name: str) -> None:
    for each in of(name):
        if each.name == "RUN" and re.search(r"caspi/(base|tools|install|compiler)\b", each.text):
            assert "--mount=type=secret,id=site" in each.text
            assert "--mount=type=secret,id=certificates" in each.text
    for script in ("base", "tools", "install", "compiler"):
        assert "[ ! -e /run/secrets/site ] || . /run/secrets/site" in (IMAGES / "steps" / script).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_exists_and_reaches_the_build(name: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for each in of(name):
        if each.name == "COPY" and "--from" not in each.text:
            for path in each.text.split()[:-1]:
                assert (ROOT / path).exists(), path
                assert path.split("/")[0] in allowed, path


def test_the_context_holds_only_what_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "src",
        "charts",
        "pipelines",
        "images",
    }


@pytest.mark.parametrize("stage", ["base", "code"])
def test_the_images_share_their_first_layers(stage: str) -> None:
    def shared(name: str) -> list[Instruction]:
        return [each for each in of(name) if each.stage == stage]

    assert shared("train") == shared("launcher") != []
    if stage == "base":
        assert shared("train") == shared("serve")


def test_a_dockerfile_is_read_as_its_instructions() -> None:
    planted = parse("ARG A\nFROM ${A} AS x\n# no\nRUN a && \\\n    b\nCOPY --from=y \\\n  a b\n")
    assert planted == [
        Instruction("", "ARG", "A"),
        Instruction("x", "FROM", "${A} AS x"),
        Instruction("x", "RUN", "a && b"),
        Instruction("x", "COPY", "--from=y a b"),
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    shell = script.read_text().partition("\n")[0].removeprefix("#!").split()
    subprocess.run([*shell, "-n", str(script)], check=True)


# --- Pins


@pytest.mark.parametrize("name", EXTRAS)
def test_the_pins_answer_what_the_image_asks_for(name: str) -> None:
    asked = next(each.text for each in of(name) if "pins.py requirements" in each.text)
    assert f"requirements pyproject.toml {' '.join(EXTRAS[name])} >" in asked
    pins = pinned(PINS[name])
    for line in step("pins").requirements((ROOT / "pyproject.toml").read_text(), EXTRAS[name]).splitlines():
        wanted = Requirement(line)
        assert wanted.specifier.contains(Version(pins[canonicalize_name(wanted.name)])), line


def test_the_pins_of_serve_answer_its_requirements() -> None:
    pins = pinned(PINS["serve"])
    for line in (IMAGES / "serve/requirements.in").read_text().splitlines():
        if not line.startswith("#"):
            wanted = Requirement(line)
            assert wanted.specifier.contains(Version(pins[canonicalize_name(wanted.name)])), line
    assert Version(pins["transformers"]) >= Version("5.16")


def test_uv_is_the_one_that_development_uses() -> None:
    assert f"UV     := uv=={pinned(IMAGES / 'tools.txt')['uv']}\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("file", [LOCKED, PINS["serve"], IMAGES / "tools.txt"], ids=lambda file: file.name)
def test_every_pin_has_hashes_and_no_file_names_an_index(file: Path) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", file.read_text())
    assert len(entries) == len(pinned(file)) > 4
    for entry in entries:
        assert "--hash=sha256:" in entry, entry.partition("\n")[0]
    assert not re.search(r"https?://|--index|--find-links", file.read_text())


def test_torch_and_cuda_are_a_layer_of_their_own() -> None:
    layer = step("pins").torch_pins(LOCKED.read_text())
    names = re.findall(r"^([a-z0-9._-]+)", layer, re.MULTILINE)
    assert {"torch", "triton", "nvidia-cublas", "nvidia-nccl-cu13"} <= set(names)
    assert not {"torchmetrics", "transformers", "numpy"} & set(names)
    entries = re.split(r"\n(?=\S)", layer.rstrip())
    assert len(entries) == len(names)
    for entry in entries:
        assert entry in LOCKED.read_text()  # with its hashes, and whole
        assert "--hash=" in entry


def test_another_pin_leaves_the_layer_of_torch_as_it_is() -> None:
    pins, text = step("pins"), LOCKED.read_text()
    assert pins.torch_pins(re.sub(r"(?m)^transformers==\S+", "transformers==9.9.9", text)) == pins.torch_pins(text)
    assert pins.torch_pins(re.sub(r"(?m)^torch==\S+", "torch==9.9.9", text)) != pins.torch_pins(text)


@pytest.mark.parametrize("name", EXTRAS)
def test_kfp_comes_alone_by_its_hashes_and_runs_a_step(name: str) -> None:
    asked = next(each.text for each in of(name) if "pins.py only" in each.text)
    assert asked.endswith("pins.py only constraints.txt kfp >kfp.txt")
    run = next(each.text for each in last_stage(name) if "caspi/kfp.txt" in each.text and each.name == "RUN")
    assert "install --no-deps -r /usr/share/caspi/kfp.txt && python /usr/share/caspi/executor.py" in run
    entry = step("pins").only(LOCKED.read_text(), ["kfp"])
    assert re.findall(r"(?m)^[a-z-]+==", entry) == ["kfp=="]
    assert "--hash=sha256:" in entry
    # The dependencies lie below it: another version of kfp leaves their layer as it is.
    before = last_stage(name)[: [each.text for each in last_stage(name)].index(run)]
    assert any("-r /usr/share/caspi/requirements.txt" in each.text for each in before)


def test_what_is_asked_for_alone_without_a_pin_stops_the_build() -> None:
    with pytest.raises(SystemExit, match="not pinned: kfpp"):
        step("pins").only(LOCKED.read_text(), ["kfp", "kfpp"])


def test_the_step_that_the_build_runs_fails_where_the_executor_does(tmp_path: Path) -> None:
    def done(**environment: str) -> int:
        command = [sys.executable, IMAGES / "steps/executor.py"]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, check=False).returncode

    assert done() == 0
    planted = tmp_path / "kfp/dsl"
    planted.mkdir(parents=True)
    for file in (planted.parent / "__init__.py", planted / "__init__.py", planted / "executor_main.py"):
        file.write_text("")  # a kfp that imports, ends with 0, and runs nothing
    assert done(PYTHONPATH=str(tmp_path)) != 0


def test_what_is_installed_without_its_pin_is_named() -> None:
    unpinned = step("pins").unpinned
    pins = "numpy==2.1.0 \\\n    --hash=sha256:00\nuvicorn[standard]==1.0\nb==3+cpu\n"
    assert unpinned(pins, {"numpy": "2.1.0", "uvicorn": "1.0", "b": "3+cpu"}, []) == []
    assert unpinned(pins, {"numpy": "2.2.0", "stray": "1"}, []) == [
        "numpy==2.2.0, pinned: 2.1.0",
        "stray==1, pinned: no",
    ]
    assert unpinned(pins, {"stray": "1"}, ["stray"]) == []


def test_an_extra_that_does_not_exist_stops_the_build() -> None:
    with pytest.raises(KeyError):
        step("pins").requirements((ROOT / "pyproject.toml").read_text(), ["train", "trian"])


# --- Bill of materials


def test_the_bill_of_materials_lists_python_packages() -> None:
    sbom = step("sbom")
    components = sbom.python_packages()
    numpy = next(each for each in components if each["name"] == "numpy")
    assert numpy["purl"] == f"pkg:pypi/numpy@{numpy['version']}"
    document = json.loads(json.dumps(sbom.document("caspi-train", components)))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    references = [each["bom-ref"] for each in document["components"]]
    assert len(references) == len(set(references)) == len(components)


# --- images/build, with programs that only say what they were asked

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0") $1" in
    "docker version") [ -n "$DOCKER_WORKS" ] || exit 1 ;;
    "podman info") [ -n "$PODMAN_WORKS" ] || exit 1 ;;
    "docker image") echo "there.example/x/caspi-train@sha256:feed" ;;
esac
for argument; do
    case $argument in
        id=site,src=*) cp "${argument#id=site,src=}" "$KEPT" ;;
    esac
    [ "$last" != --digestfile ] || echo sha256:beef >"$argument"
    last=$argument
done
"""


@dataclass(frozen=True, slots=True)
class Built:
    code: int
    out: str
    err: str
    calls: list[str]
    site: str


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Built]:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("docker", "podman", "buildah"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    (programs / "apt-config").write_text("#!/bin/sh\necho 'Acquire::http::Proxy \"http://cache.example\";'\n")
    (programs / "apt-config").chmod(0o755)

    def run(**variables: str) -> Built:
        calls, kept = tmp_path / "calls", tmp_path / "site"
        calls.write_text("")
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "CALLS": str(calls),
            "KEPT": str(kept),
        }
        done = subprocess.run(
            [IMAGES / "build"], env=environment | variables, capture_output=True, text=True, timeout=60, check=False
        )
        site = kept.read_text() if kept.exists() else ""
        return Built(done.returncode, done.stdout, done.stderr, calls.read_text().splitlines(), site)

    return run


@pytest.mark.parametrize(
    ("works", "tool"),
    [
        ({"DOCKER_WORKS": "1", "PODMAN_WORKS": "1"}, "docker build"),
        ({"PODMAN_WORKS": "1"}, "podman build --isolation chroot --layers"),
        ({}, "buildah build"),  # a docker command without an engine does not count
        ({"DOCKER_WORKS": "1", "TOOL": "buildah"}, "buildah build"),
    ],
)
def test_the_first_tool_that_works_builds(build: Callable[..., Built], works: dict[str, str], tool: str) -> None:
    built = build(IMAGES="train", **works)
    assert (built.code, built.out) == (0, "localhost/caspi-train:latest\n"), built.err
    builds = [call for call in built.calls if " build " in call]
    assert len(builds) == 1
    assert builds[0].startswith(tool)
    assert " -f images/train/Dockerfile -t localhost/caspi-train:latest " in builds[0]
    assert re.search(r"--build-arg VERSION=\d+\.\d+\.\d+ ", builds[0])


@pytest.mark.parametrize(
    ("works", "reference"),
    [
        ({"DOCKER_WORKS": "1", "REGISTRY": "there.example/x"}, "there.example/x/caspi-train@sha256:feed\n"),
        ({"PODMAN_WORKS": "1", "REGISTRY": "there.example/x"}, "there.example/x/caspi-train@sha256:beef\n"),
        ({"REGISTRY": "there.example:5000", "INSECURE": "1"}, "there.example:5000/caspi-train@sha256:beef\n"),
    ],
)
def test_what_is_pushed_is_printed_by_digest(
    build: Callable[..., Built], works: dict[str, str], reference: str
) -> None:
    built = build(IMAGES="train", TAG="t1", **works)
    assert (built.code, built.out) == (0, reference), built.err
    pushed = next(call for call in built.calls if " push " in call)
    assert f"{works['REGISTRY']}/caspi-train:t1" in pushed
    assert ("--tls-verify=false" in pushed) == ("INSECURE" in works)


def test_settings_of_the_machine_are_lent_and_never_written_into_arguments(
    build: Callable[..., Built], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.crt"
    bundle.write_text("certificates")
    built = build(
        IMAGES="train",
        PIP_INDEX_URL="https://user:pa'ss@index.example/simple",
        SSL_CERT_FILE=str(bundle),
        https_proxy="http://proxy.example:3128",
    )
    assert built.code == 0, built.err
    assert not re.search(r"example|bundle\.crt", " ".join(built.calls))
    assert "--secret id=certificates,src=" in " ".join(built.calls)
    sourced = subprocess.run(
        [
            "sh",
            "-euc",
            '. "$0"; echo "$UV_DEFAULT_INDEX $https_proxy $SSL_CERT_FILE $APT_CONFIG"',
            str(tmp_path / "site"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sourced == [
        "https://user:pa'ss@index.example/simple",
        "http://proxy.example:3128",
        "/run/secrets/certificates",
        "/run/secrets/apt",
    ]


def test_the_launcher_gets_helm_from_a_file_or_an_image(build: Callable[..., Built], tmp_path: Path) -> None:
    missing = build(IMAGES="launcher")
    assert missing.code == 2
    assert missing.err.splitlines()[-1].startswith("images/build: the launcher needs helm: HELM=")

    helm = tmp_path / "helm"
    helm.write_text("#!/bin/sh\n")
    helm.chmod(0o755)
    made = [call for call in build(IMAGES="launcher", HELM=str(helm)).calls if " build " in call]
    assert len(made) == 2  # an image with nothing but helm, then the launcher
    assert "--build-arg HELM_IMAGE=localhost/caspi-helm:latest --build-arg HELM_PATH=/usr/bin/helm" in made[1]

    given = build(IMAGES="launcher", HELM_IMAGE="there.example/helm@sha256:1", HELM_PATH="/helm").calls
    assert "--build-arg HELM_IMAGE=there.example/helm@sha256:1 --build-arg HELM_PATH=/helm" in given[-1]


def test_an_unknown_image_is_refused_in_one_line(build: Callable[..., Built]) -> None:
    built = build(IMAGES="trian")
    assert (built.code, built.err) == (2, 'images/build: no image "trian": it is one of train, launcher, serve\n')


def test_the_images_that_are_built_are_the_ones_there() -> None:
    assert sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile")) == sorted(NAMES)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "src/caspi/__init__.py").read_text()


# --- tests/cluster/podman: the socket for kfp.local, with programs that only say what they were asked

TOOLS = [
    "bash",
    "cat",
    "chmod",
    "date",
    "dirname",
    "env",
    "flock",
    "mkdir",
    "nohup",
    "rm",
    "sed",
    "setsid",
    "sh",
    "sleep",
    "tail",
]
ENGINES = {
    "docker": 'case "$1" in version) [ -n "$DOCKER_WORKS" ] ;; context) echo unix:///there/docker.sock ;; esac',
    "podman": 'case "$1 $2" in "system service") exec sleep 60 ;; --version*) echo "podman version 4.3.1" ;; esac',
    "runc": "",
}


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Callable[..., Built]]:
    """tests/cluster/podman where only these programs are installed."""
    programs, calls, home = tmp_path / "programs", tmp_path / "calls", tmp_path / "home"
    programs.mkdir()
    for name in TOOLS:
        (programs / name).symlink_to(str(shutil.which(name)))

    def run(command: str, *engines: str, **variables: str) -> Built:
        for name in ENGINES:
            (programs / name).unlink(missing_ok=True)
            if name in engines:
                (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n{ENGINES[name]}\n')
                (programs / name).chmod(0o755)
        calls.write_text("")
        environment = {"PATH": str(programs), "HOME": str(tmp_path), "CALLS": str(calls)}
        done = subprocess.run(
            [ROOT / "tests/cluster/podman", command],
            env=environment | {"CASPI_PODMAN_HOME": str(home)} | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Built(done.returncode, done.stdout, done.stderr, calls.read_text().splitlines(), "")

    yield run
    run("down", "podman", "runc")


def test_the_socket_is_dockers_where_docker_answers(socket: Callable[..., Built]) -> None:
    up = socket("up", "docker", "podman", "runc", DOCKER_WORKS="1")
    assert (up.code, up.out) == (0, "export DOCKER_HOST=unix:///there/docker.sock\n"), up.err
    assert not any("podman" in call for call in up.calls)
    told = socket("up", "docker", DOCKER_WORKS="1", DOCKER_HOST="tcp://there.example:2375")
    assert told.out == "export DOCKER_HOST=tcp://there.example:2375\n"


def test_else_it_is_podmans_started_once_and_ended(socket: Callable[..., Built], tmp_path: Path) -> None:
    place = f"unix://{tmp_path}/home/podman.sock"
    up = socket("up", "docker", "podman", "runc")
    assert (up.code, up.out) == (0, f"export DOCKER_HOST={place}\n"), up.err
    assert f"podman system service --time=0 {place}" in up.calls
    settings = tomllib.loads((tmp_path / "home/containers.conf").read_text())
    assert settings["engine"]["cgroup_manager"] == "cgroupfs"
    assert settings["engine"]["runtime"] == "runc"
    for kind, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        (given,) = [one for one in settings["containers"]["default_ulimits"] if one.startswith(kind)]
        hard = resource.getrlimit(limit)[1]
        assert 0 < int(given.rpartition(":")[2]) <= (hard if hard > 0 else 65536)  # more than ours can't be given

    # Again, also where Docker's command talks to this socket: the same one, and nothing is started.
    again = socket("up", "docker", "podman", "runc", DOCKER_WORKS="1", DOCKER_HOST=place)
    assert again.out == up.out
    assert not any("service" in call for call in again.calls)
    assert socket("running", "podman").code == 0
    assert socket("down", "podman").code == 0
    assert socket("running", "podman").code == 1


def test_a_stranger_who_has_the_number_is_not_ended(socket: Callable[..., Built], tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    (tmp_path / "home").mkdir()
    (tmp_path / "home/podman.pid").write_text(f"{stranger.pid} 1\n")  # whose start was another
    try:
        assert socket("down", "podman").code == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("command", "variables", "problem"),
    [
        ("up", {}, "podman runc not found: install podman and runc, or start Docker"),
        ("up", {"CASPI_PODMAN_HOME": f"/tmp/{'x' * 120}"}, "a socket's path has at most 107 characters"),
        ("upp", {}, "usage: podman up|down|running"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    socket: Callable[..., Built], command: str, variables: dict[str, str], problem: str
) -> None:
    done = socket(command, **variables)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert problem in done.err
