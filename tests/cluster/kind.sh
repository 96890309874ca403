# shellcheck shell=bash
# The way of kind: two workers in containers of Docker or Podman, and a registry beside them.
KIND_NAME=caspi KIND_REGISTRY=caspi-registry KIND_PORT=5001 KIND_CONF=$HOME_DIR/kind.conf

kind_engine() { # docker or podman, whichever answers
  local engine
  for engine in docker podman; do have $engine && $engine info >/dev/null 2>&1 && { echo $engine; return; }; done
  return 1
}

kind_possible() { # prints why not
  kind_engine >/dev/null || { echo "neither Docker nor Podman answers"; return 1; }
  have kind || { echo "kind is not installed"; return 1; }
  have kubectl || { echo "kubectl is not installed"; return 1; }
}

kind_exists() { kind_run get clusters 2>/dev/null | grep -x "$KIND_NAME" >/dev/null; }
kind_run() { if [ "$(kind_engine)" = podman ]; then KIND_EXPERIMENTAL_PROVIDER=podman kind "$@"; else kind "$@"; fi; }
kind_node() { if [ "$1" = 0 ]; then echo "$KIND_NAME-worker"; else echo "$KIND_NAME-worker2"; fi; }
kind_node_kill() { "$(kind_engine)" kill "$(kind_node "$1")" >/dev/null; }
kind_node_start() { "$(kind_engine)" start "$(kind_node "$1")" >/dev/null; }

kind_up() {
  local engine node kubectl=(kubectl --kubeconfig "$KIND_CONF"); engine=$(kind_engine)
  steps registry 15 nodes 90 operator 60
  step registry
  $engine container inspect $KIND_REGISTRY >/dev/null 2>&1 || $engine run -d --restart=always -p "127.0.0.1:$KIND_PORT:5000" --name $KIND_REGISTRY docker.io/library/registry:2 >/dev/null
  $engine start $KIND_REGISTRY >/dev/null
  step nodes
  # shellcheck disable=SC2046
  if kind_exists; then $engine start $(kind_run get nodes --name $KIND_NAME) >/dev/null; kind_run export kubeconfig --name $KIND_NAME --kubeconfig "$KIND_CONF"
  else kind_config | kind_run create cluster --name $KIND_NAME --kubeconfig "$KIND_CONF" --wait 120s --config -; fi
  $engine network connect kind $KIND_REGISTRY 2>/dev/null || true # connected already
  for node in $(kind_run get nodes --name $KIND_NAME); do
    $engine exec "$node" mkdir -p /etc/containerd/certs.d/registry.local:5000
    printf '[host."http://%s:5000"]\n  capabilities = ["pull", "resolve"]\n' $KIND_REGISTRY |
      $engine exec -i "$node" tee /etc/containerd/certs.d/registry.local:5000/hosts.toml >/dev/null
  done
  # a dead node is noticed within 12 to 14 s, as with the bare programs; in the manifest itself, since kubeadm's own format for it changed
  # shellcheck disable=SC2016
  $engine exec "$KIND_NAME-control-plane" sh -c 'f=/etc/kubernetes/manifests/kube-controller-manager.yaml
    grep -q node-monitor $f || sed -i "s/^\( *\)- kube-controller-manager$/&\n\1- --node-monitor-period=2s\n\1- --node-monitor-grace-period=12s/" $f'
  step operator
  "${kubectl[@]}" apply --server-side -k "$HERE/../../manifests/operator" >/dev/null || die "the operator could not be applied: manifests/operator"
  "${kubectl[@]}" -n kubeflow patch deployment training-operator -p '{"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "caspi-worker"}}}}}' >/dev/null # tests kill the other
  "${kubectl[@]}" -n kubeflow rollout status deploy/training-operator --timeout=300s >/dev/null || die "the operator doesn't start: kubectl -n kubeflow describe pods"
  wait_for 120 operator_answers "${kubectl[@]}" || die "the operator's webhook doesn't answer: kubectl -n kubeflow logs deploy/training-operator"
  write_exports kind "$KIND_CONF" "127.0.0.1:$KIND_PORT" registry.local:5000
}

kind_config() {
  cat <<'C'
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
containerdConfigPatches:
- |-
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  nodeStatusUpdateFrequency: 4s
  nodeLeaseDurationSeconds: 8
C
}

kind_down() { # [purge]
  kind_run delete cluster --name $KIND_NAME --kubeconfig "$KIND_CONF"
  rm -f "$KIND_CONF"
  local engine; engine=$(kind_engine)
  if [ "${1:-}" = purge ]; then $engine rm -f -v $KIND_REGISTRY >/dev/null; else $engine stop $KIND_REGISTRY >/dev/null; fi
}
