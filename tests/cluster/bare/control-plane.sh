# shellcheck shell=bash
# Keys (made when missing, nearly too old, or not signed by our authority), etcd, API server, controllers, scheduler, registry.
# shellcheck disable=SC2154,SC2153 # paths and networks: ../bare.sh

authority() {
  openssl x509 -checkend 864000 -noout -in "$PKI/ca.crt" >/dev/null 2>&1 && [ -s "$PKI/sa.pub" ] && return
  rm -rf "$PKI"; mkdir -p "$PKI"
  openssl genrsa -out "$PKI/ca.key" 2048 2>/dev/null
  openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
  openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
  openssl req -x509 -new -key "$PKI/ca.key" -subj /CN=caspi-local-authority -days 3650 -out "$PKI/ca.crt"
}

certificate() { # NAME SUBJECT [ALTERNATIVE NAMES]
  local file=$PKI/$1
  openssl verify -CAfile "$PKI/ca.crt" "$file.crt" >/dev/null 2>&1 && openssl x509 -checkend 864000 -noout -in "$file.crt" >/dev/null && return
  openssl genrsa -out "$file.key" 2048 2>/dev/null
  openssl req -new -key "$file.key" -subj "$2" -out "$file.csr"
  openssl x509 -req -in "$file.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 -out "$file.crt" 2>/dev/null \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "${3:-DNS:$1}")
}

keys() {
  authority
  certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$GATEWAY"
  certificate admin /O=system:masters/CN=admin
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  certificate kubelet-0 /O=system:nodes/CN=system:node:node-0 "DNS:node-0,IP:10.200.0.1"
  certificate kubelet-1 /O=system:nodes/CN=system:node:node-1 "DNS:node-1,IP:10.200.0.2"
  local user
  for user in admin controller-manager scheduler proxy kubelet-0 kubelet-1; do
    cat > "$CONF/$user.conf" <<C
apiVersion: v1
kind: Config
clusters: [{name: caspi-local, cluster: {server: "https://$GATEWAY:6443", certificate-authority: $PKI/ca.crt}}]
users: [{name: $user, user: {client-certificate: $PKI/$user.crt, client-key: $PKI/$user.key}}]
contexts: [{name: caspi-local, context: {cluster: caspi-local, user: $user}}]
current-context: caspi-local
C
  done
}

network() { # the bridge between the nodes; forwarding between pods of different nodes, also where Docker drops it by default
  ip link show caspi-nodes >/dev/null 2>&1 || ip link add caspi-nodes type bridge
  ip addr replace "$GATEWAY/24" dev caspi-nodes
  ip link set caspi-nodes up
  sysctl -qw net.ipv4.ip_forward=1
  local net
  for net in 10.200.0.0/24 $PODS; do
    iptables -C FORWARD -s "$net" -d 10.0.0.0/8 -j ACCEPT 2>/dev/null || iptables -I FORWARD -s "$net" -d 10.0.0.0/8 -j ACCEPT
  done
}

etcd() {
  start etcd "$BIN/etcd" --data-dir "$STATE/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
  wait_for 20 etcd_healthy
}

etcd_healthy() (
  exec 3<> /dev/tcp/127.0.0.1/2379
  printf 'GET /health HTTP/1.0\r\n\r\n' >&3
  grep -q '"health":"true"' <&3
)

control_plane() {
  if ! etcd; then # an unclean end can leave a database that no etcd reads; nothing in it is worth a blocked start
    say "etcd can't read its state: starting with an empty cluster ($LOGS/etcd.log)"
    stop etcd; rm -rf "$STATE/etcd"; etcd || die "etcd doesn't start: $LOGS/etcd.log; $ANEW"
  fi
  start apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address="$GATEWAY" --advertise-address="$GATEWAY" --secure-port=6443 \
    --service-cluster-ip-range="$SERVICES" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --client-ca-file="$PKI/ca.crt" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --service-account-key-file="$PKI/sa.pub" \
    --service-account-signing-key-file="$PKI/sa.key" --service-account-issuer=https://kubernetes.default.svc \
    --kubelet-client-certificate="$PKI/admin.crt" --kubelet-client-key="$PKI/admin.key" --kubelet-preferred-address-types=InternalIP --allow-privileged=true
  wait_for 90 "${KUBECTL[@]}" get --raw /readyz --request-timeout=5s || die "the API server doesn't get ready: $LOGS/apiserver.log; $ANEW"
  # A dead node is noticed within 12 to 14 s (as it comes: 50 s), so that tests of it are short; kubelets report every 2 to 4 s.
  start controller-manager "$BIN/kube-controller-manager" --kubeconfig="$CONF/controller-manager.conf" --root-ca-file="$PKI/ca.crt" \
    --service-account-private-key-file="$PKI/sa.key" --use-service-account-credentials --cluster-cidr="$PODS" --allocate-node-cidrs=false --leader-elect=false \
    --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" --node-monitor-period=2s --node-monitor-grace-period=12s
  start scheduler "$BIN/kube-scheduler" --kubeconfig="$CONF/scheduler.conf" --leader-elect=false
}

registry() {
  mkdir -p "$STATE/registry" "$STATE/certs.d/registry.local:5000"
  cat > "$STATE/registry.yml" <<C
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $STATE/registry}, delete: {enabled: true}}
http: {addr: "$GATEWAY:5000"}
C
  printf 'server = "http://%s:5000"\n[host."http://%s:5000"]\n  capabilities = ["pull", "resolve"]\n' "$GATEWAY" "$GATEWAY" > "$STATE/certs.d/registry.local:5000/hosts.toml"
  start registry docker-registry serve "$STATE/registry.yml"
}
