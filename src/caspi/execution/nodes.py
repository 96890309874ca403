"""Which training processes this machine starts, and whom it meets: from the cluster file, options, and an operator.

The options have torchrun's names, and its environment variables (PET_NNODES and so on), which the training operator
of Kubernetes sets in every pod.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from caspi.errors import UserError
from caspi.execution.agent import DEFAULTS, Alone, Meeting
from caspi.launched import is_launched
from caspi.spec import ClusterSpec

AS_THE_CLUSTER_SAYS = (None, "auto", "gpu", "cpu")
BOOLEANS = {"true": "1", "false": "0"}
CONF = ("join_timeout", "last_call_timeout", "read_timeout", "is_host")


def meeting_for(
    cluster: ClusterSpec, nnodes: str | None, nproc: str | None, endpoint: str | None, name: str, conf: str | None
) -> Meeting | None:
    """Whom the agent on this machine meets; None when this process trains by itself: alone, or started by an agent.

    UserError names the option that is wrong.
    """
    if is_launched():
        return None
    fewest, most = _nodes(nnodes or str(cluster.nodes))
    processes = cluster.gpus_per_node or cluster.processes_per_node
    if nproc not in AS_THE_CLUSTER_SAYS:
        processes = _number(str(nproc), f"--nproc-per-node {nproc}")
    if most == 1:
        return Alone(name, processes) if processes > 1 else None
    if not endpoint:
        raise UserError(
            f"{most} nodes need a place to meet: give --rdzv-endpoint HOST:PORT of the first one, the same on each"
        )
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", DEFAULTS["TORCH_CPP_LOG_LEVEL"])  # read when torch is loaded
    from caspi.training.rendezvous import Rendezvous

    return Rendezvous(name, _endpoint(endpoint), fewest, most, processes, _conf(conf or ""))


def training_command(round_dir: Path) -> list[str]:
    """What each training process runs."""
    return [sys.executable, "-m", "caspi", "stage", "train", "--round-dir", str(round_dir)]


def _nodes(text: str) -> tuple[int, int]:
    """ "2" or "1:3"."""
    low, _, high = text.partition(":")
    fewest, most = _number(low, f"--nnodes {text}"), _number(high or low, f"--nnodes {text}")
    if fewest > most:
        raise UserError(f"--nnodes {text}: {fewest} is more than {most}; write FEWEST:MOST")
    return fewest, most


def _number(text: str, where: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f'{where}: "{text}" is no whole number above 0')
    return int(text)


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--rdzv-endpoint {text}: write HOST:PORT, for example node-0:29400")
    return host.strip("[]"), int(port)


def _conf(text: str) -> dict[str, float]:
    """ "join_timeout=600,is_host=1": seconds, or 0 and 1."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in CONF:
            raise UserError(f"--rdzv-conf {part}: not one of {', '.join(CONF)}")
        try:
            found[name.strip()] = float(BOOLEANS.get(value.strip().lower(), value))
        except ValueError:
            raise UserError(f"--rdzv-conf {part}: give a number, or true or false") from None
    return found
