"""What the API server, an admission webhook or Helm says when it refuses: named, in one line, with the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from caspi.errors import UserError
from caspi.fleet.names import RefusalId


@dataclass(frozen=True, slots=True)
class Refusal:
    """`id` is stable: docs/status.md lists them."""

    id: RefusalId
    line: str
    passing: bool = False
    """Whether trying again may do."""


class OutOfReach(UserError):
    """The cluster did not answer, or could not do it just now: later it may."""


_TABLE: list[tuple[RefusalId, str, str, bool]] = [
    # id, pattern, line (with the pattern's groups), whether it may pass
    (
        "quota-exceeded",
        r"exceeded quota: (?P<quota>[\w.-]+), requested: (?P<asked>.+?), used: (?P<used>.+?), "
        r"limited: (?P<limit>[^\n]+)",
        "quota {quota} does not allow it: asks for {asked}, used are {used} of {limit}; ask for less "
        "(kubernetes.pod, nodes), wait until others end, or have the quota raised",
        False,
    ),
    (
        "quota-exceeded",
        r"failed quota: (?P<quota>[\w.-]+): (?P<what>[^\n]+)",
        "quota {quota}: {what}; the pod has to say how much it takes",
        False,
    ),
    (
        "pod-security",
        r"violates PodSecurity \"(?P<level>[^\"]+)\": (?P<what>[^\n]+)",
        "Pod Security {level} of the namespace refuses the pod: {what}; the chart's own pods pass `restricted`, so "
        "look at what --values adds (workers.rdma needs IPC_LOCK)",
        False,
    ),
    (
        "webhook-down",
        r"failed calling webhook \"(?P<hook>[^\"]+)\": (?P<what>[^\n]+)",
        "webhook {hook} does not answer ({what}); is the training operator running? "
        "kubectl get pods -A | grep training-operator",
        True,
    ),
    (
        "webhook-denied",
        r"admission webhook \"(?P<hook>[^\"]+)\" denied the request: (?P<what>[^\n]+)",
        "webhook {hook} refused it: {what}",
        False,
    ),
    (
        "no-operator",
        r"no matches for kind \"PyTorchJob\"",
        "the cluster has no PyTorchJob: install the training operator first (manifests/)",
        False,
    ),
    (
        "chart-refused",
        r"execution error at \([^)]*\): (?:(?:a problem|\d+ problems) in the values of \S+:)?(?P<what>(?:.|\n(?!\n))+)",
        "{what}",
        False,
    ),
    (
        "not-ours",
        r"(?P<kind>\w+) \"(?P<object>[^\"]+)\" in namespace \"(?P<namespace>[^\"]*)\" exists and cannot be imported",
        "{kind} {object} is in namespace {namespace} already, and this release did not make it; delete it, or take "
        "another name for the round",
        False,
    ),
    (
        "no-namespace",
        r"namespaces? \"(?P<namespace>[^\"]+)\" not found",
        "there is no namespace {namespace}; make it first (manifests/, or kubectl create namespace {namespace})",
        False,
    ),
    (
        "forbidden",
        r"User \"(?P<user>[^\"]+)\" cannot (?P<verb>\w+) resource \"(?P<resource>[^\"]+)\"(?: in API group \"[^\"]*\")?"
        r"(?: in the namespace \"(?P<namespace>[^\"]+)\"| at the cluster scope)?",
        "{user} may not {verb} {resource} in namespace {namespace}; ask for the role (manifests/), or use another "
        "context (--context)",
        False,
    ),
    (
        "unauthorized",
        r"Unauthorized|asked for the client to provide credentials|getting credentials",
        "the cluster does not know these credentials; log in again, or use another context (--context)",
        False,
    ),
    (
        "no-context",
        r"context \"(?P<context>[^\"]+)\" does not exist|Expected object with name (?P<other>\S+) in .*contexts",
        "the kubeconfig has no context {context}{other}; `kubectl config get-contexts` lists them",
        False,
    ),
    (
        "untrusted",
        r"CERTIFICATE_VERIFY_FAILED|certificate signed by unknown authority|x509: certificate",
        "its certificate is not the one that the kubeconfig trusts: is this another cluster? get the kubeconfig anew",
        False,
    ),
    (
        "overloaded",
        r"(?P<what>etcdserver: [\w ,]+|too many requests|TooManyRequests|server is currently unable|ServiceUnavailable|"
        r"context deadline exceeded|the object has been modified|InternalError|Internal error occurred)",
        "the API server could not do it just now ({what}); try again",
        True,
    ),
    (
        "unreachable",
        r"(?P<what>connection refused|no such host|Name or service not known|no route to host|network is unreachable|"
        r"i/o timeout|timed out|TLS handshake timeout|connection reset by peer|unexpected EOF|Connection aborted|"
        r"Kubernetes cluster unreachable)",
        "the cluster does not answer ({what}); is it up, and is the context right? kubectl config get-contexts",
        True,
    ),
]


def refusal(text: str) -> Refusal | None:
    """What `text` means; None when it is nothing that is known here."""
    for name, pattern, line, passing in _TABLE:
        if match := re.search(pattern, text, re.IGNORECASE):
            found = {key: _flat(value or "") for key, value in match.groupdict().items()}
            return Refusal(name, line.format(**found).replace(" in namespace ;", ";"), passing)
    return None


def _flat(value: str) -> str:
    """Lines one after the other, on one."""
    return "; ".join(line.strip().rstrip(".") for line in value.splitlines() if line.strip())


def as_error(text: str, where: str) -> UserError:
    """The one line for a refusal, known or not."""
    known = refusal(text)
    kind = OutOfReach if known and known.passing else UserError
    return kind(known.line if known else one_line(text), where=where)


def one_line(text: str, most: int = 400) -> str:
    """The text as one line, without Helm's preamble."""
    line = " ".join(text.removeprefix("Error: ").split())
    return line if len(line) <= most else f"{line[:most]} ..."
