"""`caspi status --to helm`: the line for each cause, on objects in the API's shapes. Recordings: tests/fleet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from caspi.fleet.diagnose import diagnose, headline, render
from caspi.fleet.snapshot import Snapshot
from caspi.records.heartbeat import Heartbeat, LastMessage

NOW, BEFORE, LONG_AGO = "2026-11-21T15:06:00Z", "2026-11-21T15:00:00Z", "2026-11-21T12:00:00Z"
ROUND = {"caspi.dev/round": "demo"}
Object = dict[str, Any]


def condition(kind: str, status: str = "True", **more: Any) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": BEFORE, **more}


def job(*conditions: Object, suspend: bool | None = None, labels: dict[str, str] | None = None) -> Object:
    return {
        "metadata": {
            "name": "demo",
            "uid": "uid-job",
            "creationTimestamp": BEFORE,
            "labels": ROUND | (labels or {}),
            "annotations": {"caspi.dev/spec-digest": "a" * 64},
        },
        "spec": {
            "elasticPolicy": {"minReplicas": 2, "maxReplicas": 3},
            "runPolicy": {} if suspend is None else {"suspend": suspend},
            "pytorchReplicaSpecs": {"Worker": {"replicas": 3, "template": {"spec": TEMPLATE}}},
        },
        "status": {"conditions": list(conditions)},
    }


CLAIM = {"name": "rounds", "persistentVolumeClaim": {"claimName": "disk"}}
TEMPLATE = {"volumes": [CLAIM], "containers": [{"name": "pytorch", "resources": {"limits": {"memory": "96Gi"}}}]}
RUNNING = job(condition("Created"), condition("Running"))
FAILED = job(condition("Failed", reason="PyTorchJobFailed", message='job "demo" is failing because "Worker" failed.'))


def pod(name: str = "demo-worker-0", phase: str = "Running", **status: Any) -> Object:
    ready = condition("Ready", "True" if phase == "Running" and not status else "False")
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": ROUND},
        "spec": {
            "nodeName": "node-1",
            "initContainers": [{"name": "fetch"}],
            "containers": [
                {
                    "name": "pytorch",
                    "resources": {"limits": {"memory": "96Gi"}, "requests": {"nvidia.com/gpu": "8", "memory": "96Gi"}},
                }
            ],
            "volumes": [CLAIM],
        },
        "status": {"phase": phase, "conditions": [ready], **status},
    }


def container(state: Object, name: str = "pytorch") -> Object:
    return {"name": name, "image": "registry.example.com/train@sha256:0", "state": state}


def waiting(reason: str, message: str = "") -> Object:
    return pod(phase="Pending", containerStatuses=[container({"waiting": {"reason": reason, "message": message}})])


def ended(code: int, message: str = "", reason: str = "Error", name: str = "demo-worker-0") -> Object:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod(name, "Failed", containerStatuses=[container(state, "prepare" if "gate" in name else "pytorch")])


def unplaced(message: str) -> Object:
    found = pod(phase="Pending")
    del found["spec"]["nodeName"]
    found["status"]["conditions"] = [condition("PodScheduled", "False", reason="Unschedulable", message=message)]
    return found


def going(pod: Object, due: str) -> Object:
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": due}}


def event(reason: str, message: str, about: str = "job", at: str = BEFORE) -> Object:
    return {
        "metadata": {"creationTimestamp": at},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "involvedObject": {"uid": f"uid-{about}", "name": about.replace("job", "demo")},
    }


def quota(**hard_and_used: str) -> Object:
    hard = {"requests.nvidia.com/gpu": hard_and_used["hard"]}
    used = {"requests.nvidia.com/gpu": hard_and_used["used"]}
    return {"metadata": {"name": "gpu"}, "status": {"hard": hard, "used": used}}


def look(of: Object | None = RUNNING, *pods: Object, **more: Any) -> Snapshot:
    return Snapshot("demo", "asr", NOW, job=of, pods=list(pods), **more)


SAID = LastMessage(5, "step 6,120: the loss is NaN", 6120, 6000).text()
OOM = LastMessage(
    137,
    "rank 1 was killed: out of memory (limit 96.00 GiB, at most 96.00 GiB used); raise "
    "workers.resources.memory, or have fewer data workers (workers in the cluster file)",
    7,
    5,
).text()
FULL = LastMessage(4, "no space left on /rounds/demo-aaaaaaaa/train; free some space or enlarge the claim", 7, 5).text()
SPENT = LastMessage(4, "demo-worker-0 was started 5 times since the beginning and was killed each time", None).text()
CAUTION = LastMessage(
    3,
    "the audit says CAUTION: domain phone: 17.0%; look at the findings, then run `caspi submit "
    "rounds/demo.yaml --cluster ... --approve-by NAME --approve-audit 0123456789ab`",
).text()
GATE = {
    "metadata": {"name": "demo-gate-1234abcd", "uid": "uid-gate", "labels": ROUND},
    "spec": {},
    "status": {"conditions": [condition("Failed", reason="PodFailurePolicy", message="Container prepare failed")]},
}
PREPARES = {**GATE, "status": {"active": 1}}
SHARDS = {
    "metadata": {"name": "demo-prepare-1", "uid": "u", "labels": ROUND},
    "spec": {"completions": 7},
    "status": {"active": 4, "succeeded": 3},
}
WAITS = job(condition("Suspended"), suspend=True)
QUEUED = job(condition("Suspended"), suspend=True, labels={"kueue.x-k8s.io/queue-name": "gpus"})
WORKLOAD = {
    "status": {
        "conditions": [
            condition(
                "QuotaReserved",
                "False",
                reason="Pending",
                message="couldn't assign flavors: insufficient unused quota for nvidia.com/gpu, 8 more needed",
            )
        ]
    }
}
EVICTED = {"reason": "Evicted", "message": "The node was low on resource: memory. Threshold quantity: 100Mi."}
NO_GPU = (
    "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 2 Insufficient nvidia.com/gpu. "
    "preemption: 0/3 nodes are available"
)
UNBOUND = {"metadata": {"name": "disk", "uid": "uid-claim"}, "status": {"phase": "Pending"}}

CASES: list[tuple[str, Snapshot, str]] = [
    # where it can't be placed
    (
        "insufficient-gpu",
        look(RUNNING, unplaced(NO_GPU), quotas=[quota(hard="16", used="16")]),
        "Pending 6 min: no node has 8 free nvidia.com/gpu (quota asr/gpu: 16 of 16 used); wait, add a node",
    ),
    (
        "insufficient-memory",
        look(RUNNING, unplaced("0/2 nodes are available: 2 Insufficient memory.")),
        "no node has 96Gi free memory; wait",
    ),
    (
        "node-selector",
        look(RUNNING, unplaced("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.")),
        "gpu.product in the cluster file is what is asked for",
    ),
    (
        "node-taint",
        look(RUNNING, unplaced("0/1 nodes are available: 1 node(s) had untolerated taint {team: vision}.")),
        "nodes keep it off by a taint; add workers.placement.tolerations (--values) (0/1 nodes",
    ),
    (
        "claim-missing",
        look(RUNNING, unplaced('0/2 nodes are available: persistentvolumeclaim "disk" not found.')),
        "there is no PersistentVolumeClaim disk in asr; make it",
    ),
    (
        "claim-unbound",
        look(
            RUNNING,
            unplaced("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
            claims=[UNBOUND],
            events=[event("ProvisioningFailed", 'storageclass "fast" not found', "claim")],
        ),
        'the claim disk has no volume yet (storageclass "fast" not found)',
    ),
    ("unschedulable", look(RUNNING, unplaced("0/2 nodes are available: 2 Too many pods.")), "2 Too many pods"),
    # where its containers can't begin
    (
        "image-pull",
        look(RUNNING, waiting("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: x: not found')),
        "(ImagePullBackOff): the registry has no such image; push it, or correct the digest",
    ),
    (
        "image-pull",
        look(
            RUNNING,
            waiting("ImagePullBackOff", "Back-off pulling image"),
            events=[event("Failed", "Failed to pull image: 401 Unauthorized", "demo-worker-0")],
        ),
        "the registry wants a password; name its Secret under imagePullSecrets",
    ),
    ("image-pull", look(RUNNING, waiting("InvalidImageName", "x")), "that is no image name; correct kubernetes.images"),
    (
        "secret-missing",
        look(RUNNING, waiting("CreateContainerConfigError", 'secret "hub" not found')),
        "there is no Secret hub in asr: kubectl create secret generic hub -n asr",
    ),
    (
        "secret-key-missing",
        look(RUNNING, waiting("CreateContainerConfigError", "couldn't find key token in Secret asr/hub")),
        "the Secret asr/hub has no key token; add it",
    ),
    (
        "container-start",
        look(RUNNING, waiting("RunContainerError", "exec: caspi: not found")),
        "RunContainerError: exec: c",
    ),
    (
        "volume-mount",
        look(
            RUNNING,
            waiting("ContainerCreating"),
            events=[event("FailedMount", "MountVolume.SetUp failed: mount.nfs: timed out", "demo-worker-0")],
        ),
        "a volume can't be mounted on node node-1: MountVolume.SetUp failed",
    ),
    # how they ended
    (
        "out-of-memory",
        look(FAILED, ended(137, reason="OOMKilled")),
        "OOMKilled: out of memory (limit 96Gi); raise kubernetes.pod.memory in the cluster file, then",
    ),
    ("out-of-memory", look(FAILED, ended(137, OOM)), "in the cluster file, now 96Gi); it resumes at step 5"),
    ("claim-full", look(FAILED, ended(4, FULL)), "no space left on /rounds/demo-aaaaaaaa/train; free some space"),
    ("retries-spent", look(FAILED, ended(4, SPENT)), "was started 5 times since the beginning"),
    ("diverged", look(FAILED, ended(5, SAID)), "step 6,120: the loss is NaN; the best checkpoint is kept"),
    ("hang", look(RUNNING, ended(197, "rank 1 has not answered for 300 s")), "not answered for 300 s; it is"),
    ("crash", look(FAILED, ended(1, "Traceback\nValueError: x")), "ValueError: x; `caspi logs demo` has the traceback"),
    ("bad-input", look(FAILED, ended(2, "round.yaml: data.x: no such field")), "round.yaml: data.x: no such field"),
    ("out-of-budget", look(FAILED, ended(6, "60.00 USD are spent")), "spent; the best checkpoint is kept"),
    ("deadline", look(FAILED, ended(6, "deadline: 604,800 s since training began")), "deadline: 604,800 s since"),
    ("stage-failed", look(FAILED, ended(4, "the audio is gone")), "the audio is gone; when it is mended"),
    ("ended", look(FAILED, ended(42, "the moon is full")), "ended with 42: the moon is full"),
    (
        "fetch-failed",
        look(
            RUNNING,
            pod(
                phase="Pending",
                initContainerStatuses=[
                    container({"terminated": {"exitCode": 2, "message": "hub: no such revision"}}, "fetch")
                ],
            ),
        ),
        "fetch: hub: no such revision",
    ),
    (
        "crash-loop",
        look(RUNNING, waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container")),
        "pytorch ends again and again: back-off 5m0s",
    ),
    # what was done to them
    ("evicted", look(RUNNING, pod(phase="Failed", **EVICTED)), "evicted: The node was low on resource: memory."),
    (
        "preempted",
        look(
            RUNNING,
            pod(phase="Failed", reason="Preempting", message="Preempted by a pod on node node-1", containerStatuses=[]),
        ),
        "made way for a pod of higher priority (Preempted by a pod on node node-1)",
    ),
    (
        "node-lost",
        look(RUNNING, going(pod(), BEFORE), nodes={"node-1": "Unknown"}),
        "node node-1 does not answer, so its pod can't be ended and its place stays empty: if the machine is really "
        "off, kubectl delete pod demo-worker-0 -n asr --grace-period=0 --force",
    ),
    (
        "node-lost",
        look(RUNNING, pod(containerStatuses=[container({"running": {}})]), nodes={"node-1": "Unknown"}),
        "node node-1 does not answer; the pod is given up after 300 s",
    ),
    ("stuck-terminating", look(RUNNING, going(pod(), BEFORE)), "should have ended 6 min ago"),
    # what was never made
    (
        "quota-exceeded",
        look(
            job(condition("Created")),
            events=[
                event(
                    "FailedCreatePod",
                    'Error creating: pods "demo-worker-0" is forbidden: exceeded quota: gpu, requested: '
                    "requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=16, limited: requests.nvidia.com/gpu=16",
                )
            ],
        ),
        "quota gpu does not allow it: asks for requests.nvidia.com/gpu=8, used are",
    ),
    (
        "pod-security",
        look(
            job(),
            events=[
                event("FailedCreatePod", 'pods "x" is forbidden: violates PodSecurity "restricted:latest": seccomp')
            ],
        ),
        "Pod Security restricted:latest of the namespace refuses the pod: seccomp",
    ),
    (
        "webhook-denied",
        look(
            job(),
            events=[event("FailedCreatePod", 'admission webhook "policy.example.com" denied the request: no')],
        ),
        "webhook policy.example.com refused it: no",
    ),
    ("pods-refused", look(job(), events=[event("FailedCreatePod", "the moon is full")]), "the moon is full"),
    ("operator-down", look(job()), "nobody has taken it up for 6 min: is the training operator running?"),
    # before training
    (
        "gate-caution",
        look(WAITS, ended(3, CAUTION, name="demo-gate-1234abcd-x1y2z"), jobs=[GATE]),
        "then run `caspi submit rounds/demo.yaml --cluster ... --approve-by NAME --approve-audit 0123456789ab`",
    ),
    (
        "gate-refused",
        look(WAITS, ended(3, "the audit says STOP: mend the data", name="demo-gate-1-x"), jobs=[GATE]),
        "the audit says STOP: mend the data",
    ),
    ("preparation-failed", look(WAITS, jobs=[GATE]), "PodFailurePolicy: Container prepare failed"),
    (
        "queued",
        look(QUEUED, workloads=[WORKLOAD]),
        "waits in queue gpus for 6 min: couldn't assign flavors: insufficient unused quota for nvidia.com/gpu, 8 more",
    ),
    ("queued", look(QUEUED), "Kueue has made no Workload of it: is Kueue running?"),
    ("job-failed", look(FAILED), 'PyTorchJobFailed: job "demo" is failing'),
]


IDS = [f"{name}-{n}" for n, (name, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(("name", "snapshot", "line"), CASES, ids=IDS)
def test_each_cause_has_its_line(name: str, snapshot: Snapshot, line: str) -> None:
    found = diagnose(snapshot)
    assert name in [cause.id for cause in found.causes]
    cause = next(cause for cause in found.causes if cause.id == name)
    assert line in cause.line
    assert "\n" not in cause.line
    assert f"{cause.who}  {cause.line}" in render(found)


def kept(thing: Object) -> Object:
    """As Argo CD makes it, as application asr-demo."""
    notes = {**(thing["metadata"].get("annotations") or {}), "argocd.argoproj.io/tracking-id": "asr-demo:kind:asr/demo"}
    return {**thing, "metadata": {**thing["metadata"], "annotations": notes}}


@pytest.mark.parametrize("snapshot", [one for _, one, _ in CASES], ids=IDS)
def test_nobody_is_sent_to_submit_what_argo_cd_keeps(snapshot: Snapshot) -> None:
    job = kept(snapshot.job) if snapshot.job else None
    looked = replace(snapshot, job=job, jobs=[kept(one) for one in snapshot.jobs])
    assert "caspi submit" not in render(diagnose(looked))


def test_what_argo_cd_keeps_goes_on_and_is_signed_there() -> None:
    at_the_gate = look(kept(WAITS), ended(3, CAUTION, name="demo-gate-1234abcd-x1y2z"), jobs=[kept(GATE)])
    assert "sign audit 0123456789ab in Argo CD's application asr-demo: docs/gitops.md" in render(diagnose(at_the_gate))
    failed = look(kept(RUNNING), ended(4, LastMessage(4, "the disk is slow", 7, 5).text()))
    assert "mended, `caspi cancel demo`, then `argocd app sync asr-demo`; it resumes" in render(diagnose(failed))


def test_a_healthy_job_has_no_causes() -> None:
    """The planted fault of every case above: without it nothing is said."""
    workers = [pod(f"demo-worker-{index}") for index in range(3)]
    found = diagnose(look(RUNNING, *workers))
    assert (found.causes, found.notes, found.phase, found.ready) == ([], [], "running", 3)


@pytest.mark.parametrize(
    ("of", "phase"),
    [
        (job(), "starting"),
        (job(condition("Created")), "starting"),
        (RUNNING, "running"),
        (job(condition("Restarting")), "restarting"),
        (job(condition("Running", "False"), condition("Succeeded")), "succeeded"),
        (job(condition("Running"), condition("Failed")), "failed"),
        (WAITS, "suspended"),
        (QUEUED, "queued"),
        (None, "gone"),
    ],
)
def test_the_verdict_is_that_of_the_conditions(of: Object | None, phase: str) -> None:
    """A worker that ended badly or well decides nothing; the operator does."""
    for other in (pod("demo-worker-1"), ended(1, name="demo-worker-1")):
        assert diagnose(look(of, pod(), other)).phase == phase


@pytest.mark.parametrize(("code", "verdict"), [(3, "Refused"), (4, "Preparation failed")])
def test_a_refusal_is_told_from_a_failure(code: int, verdict: str) -> None:
    said = LastMessage(code, "the audit says STOP").text()
    assert headline(diagnose(look(WAITS, ended(code, said, name="demo-gate-1-x"), jobs=[GATE]))) == f"demo   {verdict}"


def test_preparation_says_how_far_it_is() -> None:
    gate_pod = {**pod("demo-gate-1234abcd-x1y2z"), "spec": {"containers": [{"name": "prepare"}]}}
    snapshot = look(WAITS, gate_pod, jobs=[PREPARES, SHARDS], tails={"demo-gate-1234abcd-x1y2z": ["export 40%", ""]})
    text = render(diagnose(snapshot))
    assert text == (
        "demo   Preparing\n"
        "  export, audit and gate, before any GPU is asked for: 3 of 7 other shards done; export 40%\n"
    )


def test_training_that_goes_on_with_fewer_says_so() -> None:
    beat = Heartbeat(6120, 14595, 0.5, 6000, "2026-11-21T15:02:00Z").line()
    lost = {**unplaced(NO_GPU), "metadata": {"name": "demo-worker-2", "uid": "u", "labels": ROUND}}
    pods = [pod("demo-worker-0"), pod("demo-worker-1"), lost]
    text = render(diagnose(look(RUNNING, *pods, tails={"demo-worker-0": ["x", beat, "y"]})))
    assert text.splitlines()[0] == (
        "demo   PyTorchJob Running   2 of 3 workers   step 6,120 of 14,595   loss 0.5000   "
        "last checkpoint step 6,000, 4 min ago"
    )
    assert "training goes on with 2; the others join by themselves" in text
    alone = render(diagnose(look(RUNNING, pods[0], lost)))
    assert "training waits: it needs 2 workers, and 1 is there" in alone


def test_a_failed_job_says_where_it_goes_on() -> None:
    first = headline(diagnose(look(FAILED, ended(5, SAID))))
    assert first == "demo   PyTorchJob Failed   0 of 3 workers   step 6,120   last checkpoint step 6,000 is whole"


def test_replaced_workers_are_remembered_but_not_blamed() -> None:
    """Two ends of one worker: the last counts; an event of a job of before, with another uid, does not."""
    pods = [pod(f"demo-worker-{index}") for index in range(3)]
    events = [
        event("ExitedWithCode", "Pod: asr.demo-worker-1 exited with code 203", at=LONG_AGO),
        event("ExitedWithCode", "Pod: asr.demo-worker-1 exited with code 137"),
        event("ExitedWithCode", "Pod: asr.demo-worker-2 exited with code 1", about="another"),
    ]
    found = diagnose(look(RUNNING, *pods, events=events))
    line = (
        "its pod ended with 137 (killed: out of memory at its limit 96Gi, or by hand) 6 min ago, 2 times within the "
        "hour, and was started anew"
    )
    assert [(cause.who, cause.line, cause.blocks) for cause in found.causes] == [("worker-1", line, False)]


@pytest.mark.parametrize("at", [LONG_AGO, BEFORE])
def test_an_old_refusal_is_not_held_against_a_job(at: str) -> None:
    events = [
        event("FailedCreatePod", "Error creating: exceeded quota: q, requested: a=1, used: a=1, limited: a=1", at=at)
    ]
    found = diagnose(look(RUNNING, pod(), events=events))
    assert ("quota-exceeded" in [cause.id for cause in found.causes]) == (at == BEFORE)
    all_there = [pod(f"demo-worker-{index}") for index in range(3)]
    assert not diagnose(look(RUNNING, *all_there, events=events)).causes


def test_the_same_line_of_many_is_written_once() -> None:
    pods = [
        {**unplaced(NO_GPU), "metadata": {"name": f"demo-worker-{n}", "uid": str(n), "labels": ROUND}} for n in range(3)
    ]
    text = render(diagnose(look(job(condition("Created")), *pods)))
    assert text.count("no node has 8 free") == 1
    assert "worker-0 and 2 more  Pending" in text


def test_what_can_not_be_read_is_said() -> None:
    assert "dana may not list pods" in render(diagnose(replace(look(), unread=["dana may not list pods"])))
