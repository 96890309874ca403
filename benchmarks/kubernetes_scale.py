"""An elastic job of 1,000 workers on 1,000 simulated GPU nodes: from `helm install` to every pod running, the API
requests of each client, and what the job takes in etcd; with the operator's own limits and with those of manifests/.

python benchmarks/kubernetes_scale.py [--workers N] [--json]

Real: API server, etcd, scheduler, controllers, training operator, Helm and charts/caspi-train (built by
tests/cluster/tools). Simulated: nodes and their kubelets. Left out: the operator's webhook (one call a job).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from simulated.cluster import TOOLS, SimulatedCluster

HOUSE = Path(__file__).parents[1]
NAME = "scale"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pinned = _pinned_flags()
    figures = {
        "operator as it comes": _measure(options.workers, []),
        f"operator of manifests/ ({' '.join(pinned)})": _measure(options.workers, pinned),
    }
    if options.json:
        print(json.dumps(figures))
        return
    for title, found in figures.items():
        print(f"\n{title}, {options.workers:,} workers")
        for name, value in found.items():
            print(f"  {name:<62} {value:>12,}" if isinstance(value, int) else f"  {name:<62} {value:>12}")


def _pinned_flags() -> list[str]:
    """The limits of manifests/operator/deployment.yaml."""
    deployment = yaml.safe_load((HOUSE / "manifests/operator/deployment.yaml").read_text())
    arguments: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return [one for one in arguments if not one.startswith("--enable-scheme")]


def _measure(workers: int, operator_flags: list[str]) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="caspi-scale-") as folder,
        SimulatedCluster(Path(folder), operator_flags) as cluster,
    ):
        _furnish(cluster, workers)
        requests, stored = _settled(cluster), cluster.stored()
        times = _install(cluster, Path(folder), workers)
        made = _settled(cluster) - requests
        grown = {name: size - stored.get(name, 0) for name, size in cluster.stored().items()}
        taken, apart = cluster.pace("operator", "create", "pods")
        operator_memory = cluster.memory("training-operator.v1")
    by_client: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    for (client, verb, resource), count in made.items():
        if client != "watcher":
            by_client[client] += count
            by_kind[f"{client}: {verb} {resource}"] += count
    return {
        **{f"{name}, seconds": round(value, 1) for name, value in times.items()},
        "the API server takes for a pod that the operator makes, ms": round(taken * 1000, 1),
        "the operator makes the next after, ms": round(apart * 1000, 1),
        "API requests": sum(by_client.values()),
        **{f"  of {client}": count for client, count in by_client.most_common()},
        **{f"    {kind}": count for kind, count in by_kind.most_common(8)},
        "bytes in etcd": sum(size for name, size in grown.items() if name),
        **{f"  {name}": size for name, size in sorted(grown.items(), key=lambda one: -one[1])[:7] if name},
        "bytes the database grew, with its history": grown[""],
        "most memory of the operator, bytes": operator_memory,
    }


def _settled(cluster: SimulatedCluster) -> Counter[tuple[str, str, str]]:
    """Requests when no more come: Services and events lag behind the pods, and events of nodes behind the nodes."""
    found = cluster.requests()
    while True:
        time.sleep(4)
        later = cluster.requests()
        if later.total() - found.total() < 3:  # controllers look after their leases and themselves now and then
            return later
        found = later


def _furnish(cluster: SimulatedCluster, nodes: int) -> None:
    """Nodes with eight GPUs, tainted as GPU nodes are, and a claim."""
    space = {"storage": "1Ti"}
    access = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    cluster.apply(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "asr"}},
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": "rounds"},
                "spec": {**access, "capacity": space, "hostPath": {"path": "/rounds"}},
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "rounds", "namespace": "asr"},
                "spec": {**access, "resources": {"requests": space}, "volumeName": "rounds"},
            },
        ]
    )
    capacity = {"cpu": "128", "memory": "1Ti", "pods": "110", "nvidia.com/gpu": "8"}
    with cluster.http() as api, concurrent.futures.ThreadPoolExecutor(8) as pool:

        def make(index: int) -> None:
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": f"gpu-{index}", "labels": {"kubernetes.io/hostname": f"gpu-{index}"}},
                "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
                "status": {"capacity": capacity, "allocatable": capacity},
            }
            api.post("/api/v1/nodes", json=node).raise_for_status()

        list(pool.map(make, range(nodes)))
        patience = time.monotonic() + 300
        while time.monotonic() < patience:
            found = api.get("/api/v1/nodes?resourceVersion=0").json()["items"]
            if sum(len(node["spec"]["taints"]) == 1 for node in found) == nodes:  # no longer the taint "not-ready"
                return
            time.sleep(1)
    raise SystemExit("the simulated nodes did not become ready")


def _install(cluster: SimulatedCluster, folder: Path, workers: int) -> dict[str, float]:
    """Seconds from `helm install` until Helm is done, all pods are there, bound, running, and each has its Service."""
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig("person"))}
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(_values(workers)))
    begin = time.monotonic()
    command = [TOOLS / "helm", "install", NAME, HOUSE / "charts/caspi-train", "-n", "asr", "-f", values]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    times = {"helm install": time.monotonic() - begin}
    of_the_job = f"labelSelector=training.kubeflow.org/job-name={NAME}&resourceVersion=0&includeObject=None"
    with cluster.http() as api:
        while time.monotonic() < begin + 900:
            table, services = (
                api.get(f"/api/v1/namespaces/asr/{kind}?{of_the_job}", headers={"Accept": TABLE}).json()
                for kind in ("pods", "services")
            )
            columns = [column["name"] for column in table["columnDefinitions"]]
            rows = [dict(zip(columns, row["cells"], strict=True)) for row in table["rows"] or []]
            now = time.monotonic() - begin
            states = {
                "all pods made": rows,
                "all pods bound": [row for row in rows if row["Node"] != "<none>"],
                "all pods running": [row for row in rows if row["Status"] == "Running"],
                "all Services made": services["rows"] or [],
            }
            for name, there in states.items():
                if len(there) == workers:
                    times.setdefault(name, now)
            if len(times) == 1 + len(states):
                return times
            time.sleep(0.5)
    raise SystemExit(
        f"only {len(rows)} pods of {workers} within 15 minutes; states: {Counter(r['Status'] for r in rows)}"
    )


def _values(workers: int) -> dict[str, Any]:
    file = (HOUSE / "rounds/demo-r1.yaml").read_text().replace("round: demo-r1", f"round: {NAME}")
    return {
        "round": {"name": NAME, "digest": hashlib.sha256(file.encode()).hexdigest(), "file": file},
        "cluster": (HOUSE / "clusters/8xa100-40gb.yaml").read_text(),
        "image": {"repository": "registry.example.com/caspi-train", "digest": f"sha256:{'0' * 64}"},
        "workers": {
            "count": workers,
            "atLeast": 1,
            "processes": 8,
            "gpus": {"count": 8},
            "resources": {"cpu": "56", "memory": "384Gi"},
        },
        "preparation": {"enabled": False},
    }


if __name__ == "__main__":
    main()
