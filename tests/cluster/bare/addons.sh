# shellcheck shell=bash
# What every cluster has besides: the images of pause, CoreDNS and the operator, from the programs, and what runs from them.
# shellcheck disable=SC2154,SC2153 # paths and networks: ../bare.sh

load() { # TAG DOCKERFILE FILE...
  local tag=$1 dockerfile=$2 context i; shift 2
  context=$(mktemp -d)
  cp "$@" "$context/"; printf '%s\n' "$dockerfile" > "$context/Dockerfile"
  buildah build --isolation=chroot -q -t "$tag" "$context" >/dev/null
  buildah push -q -D "$tag" "docker-archive:$context/image.tar:$tag"
  for i in 0 1; do ctr -a "$SOCKETS/node-$i/containerd.sock" -n k8s.io images import "$context/image.tar" >/dev/null; done
  buildah rmi "$tag" >/dev/null
  rm -rf "$context"
}

images_loaded() {
  local i tag
  for i in 0 1; do
    for tag in localhost/pause:1 localhost/coredns:1.12.4 "localhost/training-operator:$OPERATOR"; do
      ctr -a "$SOCKETS/node-$i/containerd.sock" -n k8s.io images ls -q 2>/dev/null | grep -x "$tag" >/dev/null || return 1 # not -q: that breaks the pipe
    done
  done
}

images() {
  load localhost/pause:1 $'FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT ["/bin/busybox","sleep","2147483647"]' "$(command -v busybox)"
  load localhost/coredns:1.12.4 $'FROM scratch\nCOPY coredns /coredns\nENTRYPOINT ["/coredns"]' "$BIN/static/coredns"
  load "localhost/training-operator:$OPERATOR" $'FROM scratch\nCOPY training-operator.v1 /manager\nUSER 65532:65532\nENTRYPOINT ["/manager"]' "$BIN/static/training-operator.v1"
}

nodes_ready() { [ "$("${KUBECTL[@]}" get nodes --no-headers --request-timeout=5s 2>/dev/null | grep -c ' Ready')" = 2 ]; }

addons() { # CoreDNS, and the operator as manifests/operator has it, with upstream's part and the image from its Go module
  local version applied
  version=$(cat "$HERE/coredns.yaml" "$HERE/bare/addons.sh" "$HERE"/../../manifests/operator/* | sha256sum | cut -c1-12)
  applied=$("${KUBECTL[@]}" -n kubeflow get deployment training-operator -o jsonpath='{.metadata.annotations.caspi\.dev/addons}' 2>/dev/null || true)
  [ "$applied" = "$version" ] || apply_addons "$version"
  "${KUBECTL[@]}" -n kube-system rollout status deploy/coredns --timeout=120s >/dev/null || die "CoreDNS doesn't start: kubectl -n kube-system describe pods"
  "${KUBECTL[@]}" -n kubeflow rollout status deploy/training-operator --timeout=180s >/dev/null || die "the operator doesn't start: kubectl -n kubeflow describe pods"
  wait_for 120 operator_answers "${KUBECTL[@]}" || die "the operator's webhook doesn't answer: kubectl -n kubeflow logs deploy/training-operator"
}

apply_addons() { # VERSION
  local dir=$STATE/operator upstream=$STATE/operator/upstream-$OPERATOR module
  "${KUBECTL[@]}" apply -f "$HERE/coredns.yaml" >/dev/null
  if [ ! -d "$upstream" ]; then
    module=$(go mod download -json "github.com/kubeflow/training-operator@v$OPERATOR" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    [ -d "$module/manifests" ] || die "Go can't fetch the operator's manifests: go mod download github.com/kubeflow/training-operator@v$OPERATOR"
    mkdir -p "$dir"; rm -rf "$dir/part"; cp -r "$module/manifests" "$dir/part"; chmod -R u+w "$dir/part"; mv "$dir/part" "$upstream"
  fi
  rm -rf "$dir/ours" "$dir/local"; mkdir "$dir/local"; cp -r "$HERE/../../manifests/operator" "$dir/ours"
  sed -i 's|- https://github.com/kubeflow/trainer//manifests/\([^?]*\)?ref=.*|- ../upstream-'"$OPERATOR"'/\1|' "$dir/ours/kustomization.yaml"
  cat > "$dir/local/kustomization.yaml" <<C
resources: [../ours]
images:
- {name: ghcr.io/kubeflow/training-v1/training-operator, newName: localhost/training-operator, newTag: "$OPERATOR"}
patches: # on the node that tests don't kill
- target: {kind: Deployment, name: training-operator}
  patch: '[{"op": "add", "path": "/spec/template/spec/nodeSelector", "value": {"kubernetes.io/hostname": "node-0"}}]'
C
  "${KUBECTL[@]}" apply --server-side --force-conflicts -k "$dir/local" >/dev/null
  "${KUBECTL[@]}" -n kubeflow annotate --overwrite deployment training-operator "caspi.dev/addons=$1" >/dev/null
}
