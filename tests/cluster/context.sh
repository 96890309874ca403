# shellcheck shell=bash disable=SC2154 # context and registry are set by up
# The way of a cluster that exists: its context is pinned in a kubeconfig of our own, so that switching contexts elsewhere changes nothing here.

context_up() {
  have kubectl || die "kubectl not found: a cluster of yours is reached with it"
  if [ -z "$context" ]; then # the one of before
    context_check
    return
  fi
  [ "$context" != current ] || context=$(kubectl config current-context 2>/dev/null) || die "kubectl has no current context: CONTEXT=name"
  kubectl config get-contexts -o name | grep -xF "$context" >/dev/null || die "kubectl knows no context '$context': kubectl config get-contexts"
  [[ $registry =~ ^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._/-]+)?$ ]] ||
    die "REGISTRY=host/path is needed with CONTEXT: a registry to which this machine pushes and from which the nodes pull (given: '$registry')"
  (umask 077; kubectl config view --minify --flatten --context "$context" > "$HOME_DIR/context.conf")
  context_check
  write_exports context "$HOME_DIR/context.conf" "$registry" "$registry"
}

context_check() { # it answers, and PyTorchJobs are run there
  local kubectl=(kubectl --kubeconfig "$HOME_DIR/context.conf" --request-timeout=15s) context answer
  context=$("${kubectl[@]}" config current-context)
  answer=$("${kubectl[@]}" get --raw /version 2>&1) || die "the cluster of context '$context' doesn't answer: $(tail -1 <<< "$answer")"
  "${kubectl[@]}" get crd pytorchjobs.kubeflow.org >/dev/null 2>&1 ||
    die "context '$context' has no PyTorchJob: kubectl --context $context apply --server-side -k manifests/operator"
  [ -n "$("${kubectl[@]}" get deployments -A --field-selector metadata.name=training-operator -o jsonpath='{.items[*].status.availableReplicas}' 2>/dev/null)" ] ||
    die "context '$context' has PyTorchJob, but no running training-operator that can be seen: kubectl get deployments -A | grep training-operator"
}

context_down() { rm -f "$HOME_DIR/context.conf"; }
