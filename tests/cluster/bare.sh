# shellcheck shell=bash disable=SC2034 # its variables are used in bare/*.sh
# The way of bare programs: a Kubernetes of two nodes from its own binaries, as root on one Linux machine.
# Node 0 is this machine; node 1 is a network namespace with a kubelet and a containerd of its own. Sourced by up, down, node.
STATE=$HOME_DIR/state PKI=$HOME_DIR/state/pki PIDS=$HOME_DIR/state/run LOGS=$HOME_DIR/state/log CONF=$HOME_DIR/state/kube
SOCKETS=/run/caspi-cluster # short: a socket's path may have 107 characters
GATEWAY=10.200.0.1         # this machine on the nodes' bridge: API server and registry listen here only, never on the LAN
OPERATOR=1.9.4
SERVICES=10.96.0.0/16 PODS=10.244.0.0/16 DNS=10.96.0.10
KUBECTL=("$BIN/kubectl" --kubeconfig "$CONF/admin.conf")
DEBIAN=(containerd runc containernetworking-plugins iptables iproute2 buildah docker-registry busybox-static openssl)
export NO_PROXY=${NO_PROXY:+$NO_PROXY,}127.0.0.1,10.0.0.0/8 # the daemons too: the cluster is never behind the proxy
ANEW="make cluster-down PURGE=1 begins anew"
for part in processes control-plane node addons; do
  # shellcheck source=/dev/null
  . "$HERE/bare/$part.sh"
done

bare_possible() { # prints why not
  [ "$(uname -s)" = Linux ] || { echo "bare programs need Linux, this is $(uname -s)"; return 1; }
  [ "$(id -u)" = 0 ] || { echo "bare programs need root (namespaces, mounts, bridges): sudo, or start Docker or Podman"; return 1; }
  have apt-get || { local p; for p in containerd runc ip iptables buildah docker-registry openssl busybox; do have "$p" || { echo "$p not found, and this is no Debian to install it on"; return 1; }; done; }
}

port_free() { # PORT OWNER
  pid_of "$2" >/dev/null && return
  local holder
  holder=$(ss -Hltnp "sport = :$1" 2>/dev/null | grep -E "(127.0.0.1|$GATEWAY|0.0.0.0|\*|\[::\]):$1 " || true)
  [ -z "$holder" ] && return
  case $holder in
    *users:*) die "port $1 is in use by $(sed 's/.*users:((//; s/,fd.*//' <<< "$holder"): stop that first (the cluster's $2 needs it)" ;;
    *) wait_for 90 sh -c "! ss -Hltn 'sport = :$1' | grep -q ." || die "port $1 stays in use and its holder can't be seen: the cluster's $2 needs it" ;;
  esac
}

packages_missing() {
  local package
  ! have apt-get || for package in "${DEBIAN[@]}"; do dpkg -s "$package" >/dev/null 2>&1 || echo "$package"; done
}

packages() {
  local missing; mapfile -t missing < <(packages_missing)
  [ ${#missing[@]} -gt 0 ] || return 0
  apt-get update -qq -o DPkg::Lock::Timeout=300
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}" > "$LOGS/packages.log" 2>&1 ||
    die "apt-get could not install ${missing[*]}: $LOGS/packages.log"
}

bare_cost() {
  local missing; missing=$("$HERE/tools" --missing "$BIN" | wc -l)
  if bare_running; then echo "it runs: about 10 s"
  elif [ "$missing" = 0 ]; then echo "about 1 minute"
  else echo "about $((missing * 80 / 60 + 1)) minutes: $missing programs are built first, once (needs Go, the network and 12 GB; kept in $BIN)"; fi
}

bare_running() { local name; for name in etcd apiserver controller-manager scheduler registry containerd-0 kubelet-0 proxy-0; do pid_of $name >/dev/null || return 1; done; }

bare_up() {
  local tools first=0; tools=$("$HERE/tools" --missing "$BIN" | wc -l)
  [ -d "$STATE/node-1/containerd" ] || first=1
  steps packages $(($(packages_missing | wc -l) * 3)) tools $((tools * 80)) keys $((first * 3)) "control plane" 8 "registry and nodes" 3 images $((first * 13)) ready 5 \
    "CoreDNS and operator" $((15 + first * 15))
  ! bare_running || quiet_steps
  mkdir -p "$STATE" "$PIDS" "$LOGS" "$CONF" "$PKI" "$SOCKETS"
  if ! bare_running; then
    step packages; packages
    step tools; "$HERE/tools" "$BIN"
    port_free 2379 etcd; port_free 2380 etcd; port_free 6443 apiserver; port_free 5000 registry; port_free 10250 kubelet-0
    step keys; keys; network
    step "control plane"; control_plane
    step "registry and nodes"; registry; node_start 0
  fi
  node_start 1
  step images; images_loaded || images
  step ready; wait_for 60 nodes_ready || die "the nodes don't get ready: $LOGS/kubelet-*.log; $ANEW"
  step "CoreDNS and operator"; addons
  write_exports bare "$CONF/admin.conf" "$GATEWAY:5000" registry.local:5000
}

bare_down() { # [purge]
  local i name table chain
  for i in 1 0; do node_kill "$i"; done
  for name in scheduler controller-manager apiserver registry; do stop $name KILL; done # asked politely, the API server waits a minute for its watchers
  stop etcd
  "$BIN/kube-proxy" --cleanup > "$LOGS/cleanup.log" 2>&1 || true
  for chain in INPUT OUTPUT; do iptables -D $chain -j KUBE-FIREWALL 2>/dev/null || true; done
  for table in mangle nat filter; do
    for chain in KUBE-KUBELET-CANARY KUBE-IPTABLES-HINT KUBE-FIREWALL; do { iptables -t $table -F $chain && iptables -t $table -X $chain; } 2>/dev/null || true; done
  done
  for i in 10.200.0.0/24 $PODS; do iptables -D FORWARD -s "$i" -d 10.0.0.0/8 -j ACCEPT 2>/dev/null || true; done
  ip netns del caspi-node-1 2>/dev/null || true
  for name in caspi-pods caspi-nodes; do ip link del $name 2>/dev/null || true; done
  for i in 0 1; do find /sys/fs/cgroup -depth -type d -path "*/caspi-node-$i*" -exec rmdir {} + 2>/dev/null || true; done
  [ "${1:-}" != purge ] || rm -rf "$STATE" "$SOCKETS"
}
