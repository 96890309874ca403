# shellcheck shell=bash
# shellcheck disable=SC2034 # its variables are used where it is sourced
# What the commands in this directory share: where things are, and how they speak. Sourced, never run.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
HOME_DIR=${CASPI_CLUSTER_HOME:-$HOME/.cache/caspi/cluster}
BIN=$HOME_DIR/bin
EXPORTS=$HOME_DIR/exports # written last by up, removed first by down: there is a cluster when it is there
export PATH=$BIN:$PATH
export STORAGE_DRIVER=${STORAGE_DRIVER:-overlay}

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }
have() { command -v "$1" >/dev/null 2>&1; }

wait_for() { # SECONDS COMMAND...: until the command succeeds
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.5
  done
}

operator_answers() { # KUBECTL...: a Deployment that was here before is called ready until its kubelet has looked again
  "$@" create --dry-run=server -o name -f - <<'JOB'
{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "probe", "namespace": "default"}, "spec": {"pytorchReplicaSpecs":
 {"Worker": {"replicas": 1, "template": {"spec": {"containers": [{"name": "pytorch", "image": "none"}]}}}}}}
JOB
}

write_exports() { # WAY KUBECONFIG PUSH PULL: what env prints, and what push reads
  local part=$EXPORTS.part
  {
    printf 'export CASPI_CLUSTER_WAY=%q\n' "$1"
    printf 'export KUBECONFIG=%q\n' "$2"
    printf 'export CASPI_CLUSTER_PUSH=%q\n' "$3" # where this machine pushes images to
    printf 'export CASPI_CLUSTER_PULL=%q\n' "$4" # what pods call the same place
    # shellcheck disable=SC2016 # expanded by the reader
    printf 'export PATH=%q:$PATH\n' "$BIN"
    # shellcheck disable=SC2016
    printf 'export NO_PROXY="${NO_PROXY:+$NO_PROXY,}127.0.0.1,10.200.0.1" no_proxy="${no_proxy:+$no_proxy,}127.0.0.1,10.200.0.1"\n'
  } > "$part"
  mv "$part" "$EXPORTS"
}

read_exports() {
  [ -f "$EXPORTS" ] || die "no cluster is up: make cluster-up"
  # shellcheck source=/dev/null
  . "$EXPORTS"
}

way_of_running() { # kind, bare, context or nothing
  [ ! -f "$EXPORTS" ] || sed -n 's/^export CASPI_CLUSTER_WAY=//p' "$EXPORTS"
}

steps() { # NAME SECONDS ...: declares the plan, so that each step can say what is left
  declare -gA COST=(); LEFT=0
  while [ $# -gt 0 ]; do COST[$1]=$2; LEFT=$((LEFT + $2)); shift 2; done
}

quiet_steps() { local name; for name in "${!COST[@]}"; do COST[$name]=0; done; }

step() { # NAME: announces a step of the plan, unless it costs nothing
  [ "${COST[$1]}" = 0 ] || say "  $1: about ${COST[$1]} s ($LEFT s left in all)"
  LEFT=$((LEFT - COST[$1]))
}
