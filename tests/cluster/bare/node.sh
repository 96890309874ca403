# shellcheck shell=bash
# A node: its network, control groups, configuration, daemons; and its end, which is like a power cut.
# shellcheck disable=SC2154,SC2153 # paths and networks: ../bare.sh

node_network() { # INDEX: node 1 has a network namespace of its own, on the bridge
  local i=$1
  [ "$i" = 0 ] && return
  nsenter --net="/run/netns/caspi-node-$i" true 2>/dev/null || { rm -f "/run/netns/caspi-node-$i"; ip netns add "caspi-node-$i"; } # the name may outlive a reboot
  if ! ip link show "caspi-n$i" >/dev/null 2>&1; then
    ip link add "caspi-n$i" type veth peer name eth0 netns "caspi-node-$i"
  fi
  ip link set "caspi-n$i" master caspi-nodes up
  ip -n "caspi-node-$i" link set lo up
  ip -n "caspi-node-$i" addr replace "10.200.0.$((i + 1))/24" dev eth0
  ip -n "caspi-node-$i" link set eth0 up
  ip -n "caspi-node-$i" route replace default via "$GATEWAY"
  ip route replace "10.244.$i.0/24" via "10.200.0.$((i + 1))"
  nsenter --net="/run/netns/caspi-node-$i" sysctl -qw net.ipv4.ip_forward=1
}

node_cgroup() { # INDEX: each kubelet rules its own subtree, in both versions of cgroups
  local i=$1 controller
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/caspi-node-$i"
    for controller in cpu cpuset memory pids io hugetlb; do echo "+$controller" | tee /sys/fs/cgroup/cgroup.subtree_control > "/sys/fs/cgroup/caspi-node-$i/cgroup.subtree_control" 2>/dev/null || true; done
    return
  fi
  for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller/caspi-node-$i" 2>/dev/null || true; done
  local cpuset=/sys/fs/cgroup/cpuset file
  [ -d $cpuset/caspi-node-0 ] || return 0
  for file in cpuset.cpus cpuset.mems; do cat "$cpuset/$file" > "$cpuset/caspi-node-$i/$file"; done
}

node_files() { # INDEX
  local i=$1 dir=$STATE/node-$1 sock=$SOCKETS/node-$1
  mkdir -p "$dir/cni" "$sock"
  : > "$STATE/resolv.conf"
  cat > "$dir/containerd.toml" <<C
version = 2
root = "$dir/containerd"
state = "$sock/containerd"
[grpc]
  address = "$sock/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true # an image of 5 GB lies on each node once, not twice
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$STATE/certs.d"
C
  cat > "$dir/cni/10-bridge.conflist" <<C
{"cniVersion": "0.4.0", "name": "caspi-pods-$i", "plugins": [
 {"type": "bridge", "bridge": "caspi-pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$dir/addresses", "ranges": [[{"subnet": "10.244.$i.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
  cat > "$dir/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $PKI/ca.crt}, webhook: {enabled: true}}
authorization: {mode: Webhook}
clusterDNS: [$DNS]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupRoot: /caspi-node-$i
podLogsDir: $dir/pod-logs
failSwapOn: false
containerRuntimeEndpoint: unix://$sock/containerd.sock
tlsCertFile: $PKI/kubelet-$i.crt
tlsPrivateKeyFile: $PKI/kubelet-$i.key
resolvConf: $STATE/resolv.conf
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 8
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
C
}

node_start() { # INDEX
  local i=$1 dir=$STATE/node-$1 sock=$SOCKETS/node-$1 enter=()
  # not `ip netns exec`: that hides the cgroup mounts
  [ "$i" = 0 ] || enter=(nsenter --net="/run/netns/caspi-node-$i")
  node_network "$i"; node_cgroup "$i"; node_files "$i"
  pid_of "containerd-$i" >/dev/null || rm -f "$sock/containerd.sock"
  start "containerd-$i" "${enter[@]}" containerd -c "$dir/containerd.toml"
  wait_for 30 ctr -a "$sock/containerd.sock" version || die "containerd of node $i doesn't start: $LOGS/containerd-$i.log; $ANEW"
  start "kubelet-$i" "${enter[@]}" "$BIN/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$CONF/kubelet-$i.conf" --hostname-override="node-$i" \
    --node-ip="10.200.0.$((i + 1))" --root-dir="$dir/kubelet"
  start "proxy-$i" "${enter[@]}" "$BIN/kube-proxy" --kubeconfig="$CONF/proxy.conf" --cluster-cidr="$PODS" --hostname-override="node-$i" --proxy-mode=iptables \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
}

node_pids() { # INDEX: kubelet, proxy, containerd, its shims, and every process of a pod
  local i=$1 name file
  for name in kubelet proxy containerd; do pid_of "$name-$i" || true; done
  for file in /sys/fs/cgroup/memory/"caspi-node-$i" /sys/fs/cgroup/"caspi-node-$i"; do
    [ -d "$file" ] && find "$file" -name cgroup.procs -exec cat {} + 2>/dev/null
  done
  grep -lsa -- "$SOCKETS/node-$i/containerd.sock" /proc/[0-9]*/cmdline 2>/dev/null | while IFS=/ read -r _ _ pid _; do
    [[ $(readlink "/proc/$pid/exe") == */containerd-shim* ]] && echo "$pid"
  done
  true
}

node_kill() { # INDEX
  local i=$1 pids path
  for _ in 1 2 3 4 5; do
    pids=$(node_pids "$i" | sort -u)
    [ -z "$pids" ] && break
    # shellcheck disable=SC2086 # a list
    kill -KILL $pids 2>/dev/null || true
    sleep 0.3
  done
  rm -f "$PIDS/kubelet-$i.pid" "$PIDS/proxy-$i.pid" "$PIDS/containerd-$i.pid"
  for path in $(ip netns list | grep -oE '^cni-[0-9a-f-]+'); do
    ip -n "$path" -4 -o addr show 2>/dev/null | grep " 10\.244\.$i\." >/dev/null && ip netns del "$path"
  done
  { grep -oE " ($STATE|$SOCKETS)/node-$i/[^ ]*" /proc/mounts || true; } | sort -r | xargs -r -n1 umount -l
  ! grep -q " \($STATE\|$SOCKETS\)/node-$i/" /proc/mounts || die "mounts of node $i stay: see /proc/mounts"
  rm -rf "$SOCKETS/node-$i" "$STATE/node-$i/addresses"
}
