{{/* What the schema can't say: each problem is a line with what, where, and the way out. All at once. */}}

{{/* Bytes of a quantity, as a number in text. */}}
{{- define "caspi-train.bytes" -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15
    "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 }}
{{- $number := regexFind "^[0-9.]+" . }}
{{- printf "%.0f" (mulf (float64 $number) (get $units (trimPrefix $number .) | float64)) }}
{{- end }}

{{/* Names that are the chart's own: variables, labels and annotations that people can't set. */}}
{{- define "caspi-train.own-variables" -}}
^(POD_NAME|HOME|HF_HOME|HF_HUB_OFFLINE|NCCL_DEBUG|CASPI_.*|PET_.*|TORCH_ELASTIC_SHUTDOWN_TIMEOUT|TORCH_NCCL_ASYNC_ERROR_HANDLING|TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC)$
{{- end }}
{{- define "caspi-train.own-labels" -}}
^(caspi\.dev/.*|app\.kubernetes\.io/(name|instance|component|part-of|version|managed-by)|(meta\.)?helm\.sh/.*|training\.kubeflow\.org/.*|sidecar\.istio\.io/inject|kueue\.x-k8s\.io/queue-name|karpenter\.sh/do-not-disrupt|cluster-autoscaler\.kubernetes\.io/safe-to-evict)$
{{- end }}

{{- define "caspi-train.check" -}}
{{- $lines := concat
    (include "caspi-train.check-round" . | fromYamlArray)
    (include "caspi-train.check-workers" . | fromYamlArray)
    (include "caspi-train.check-rest" . | fromYamlArray)
    (include "caspi-train.check-live" . | fromYamlArray)
    (include "caspi-train.check-claim" . | fromYamlArray) }}
{{- if $lines }}
{{- $count := ternary "a problem" (printf "%d problems" (len $lines)) (eq (len $lines) 1) }}
{{- printf "%s in the values of %s:\n  %s" $count .Release.Name (join "\n  " $lines) | fail }}
{{- end }}
{{- end }}

{{- define "caspi-train.check-round" -}}
{{- $name := .Values.round.name }}
{{- if not (has .Release.Name (list $name "test-release")) }}{{/* the latter: of helm lint, which takes no name */}}
- {{ printf "round.name: is %q, but the release is %q; one release trains one round: helm install %s ..." $name .Release.Name $name | quote }}
{{- end }}
{{- $file := fromYaml .Values.round.file }}
{{- if hasKey $file "Error" }}
- {{ printf "round.file: is no YAML mapping (%s); give the text of the round file" (regexFind "line [0-9]+.*" $file.Error | default "a list or a word") | quote }}
{{- else if ne (toString $file.round) $name }}
- {{ printf "round.file: says round: %s, but round.name is %q; give the file of this round" (toString $file.round) $name | quote }}
{{- end }}
{{- $cluster := fromYaml .Values.cluster }}
{{- if hasKey $cluster "Error" }}
- {{ printf "cluster: is no YAML mapping (%s); give the text of the cluster file" (regexFind "line [0-9]+.*" $cluster.Error | default "a list or a word") | quote }}
{{- end }}
{{- end }}

{{- define "caspi-train.check-workers" -}}
{{- $workers := .Values.workers }}
{{- if gt (int $workers.atLeast) (int $workers.count) }}
- {{ printf "workers.atLeast: %d is more than workers.count = %d" (int $workers.atLeast) (int $workers.count) | quote }}
{{- end }}
{{- with $workers.gpus }}
{{- if ne (int .count) (int $workers.processes) }}
- {{ printf "workers.processes: is %d, but a worker has %d GPUs; one process a GPU: set %d" (int $workers.processes) (int .count) (int .count) | quote }}
{{- end }}
{{- end }}
{{- if ge (include "caspi-train.bytes" $workers.shm | float64) (include "caspi-train.bytes" $workers.resources.memory | float64) }}
- {{ printf "workers.shm: %s counts against workers.resources.memory = %s and must be less" $workers.shm $workers.resources.memory | quote }}
{{- end }}
{{- range $name, $_ := $workers.env }}
{{- if regexMatch "TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL" $name }}
- {{ printf "workers.env.%s: looks like a secret; give it by reference, under `secrets`" $name | quote }}
{{- else if regexMatch (include "caspi-train.own-variables" $) $name }}
- {{ printf "workers.env.%s: set by the chart or the operator; leave it out" $name | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "caspi-train.check-rest" -}}
{{- $workers := .Values.workers }}
{{- range $where, $placement := dict "workers" $workers.placement "preparation" .Values.preparation.placement }}
{{- range $index, $toleration := $placement.tolerations }}
{{- if and (eq ($toleration.operator | default "Equal") "Exists") $toleration.value }}
- {{ printf "%s.placement.tolerations[%d].value: Exists takes none; leave it out, or say operator: Equal" $where $index | quote }}
{{- else if and (eq ($toleration.operator | default "Equal") "Equal") (not $toleration.key) }}
- {{ printf "%s.placement.tolerations[%d].key: missing; without one, say operator: Exists" $where $index | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- range $where, $values := dict "labels" .Values.labels "annotations" .Values.annotations }}
{{- range $name, $_ := $values }}
{{- if regexMatch (include "caspi-train.own-labels" $) $name }}
- {{ printf "%s.%s: set by the chart; leave it out" $where $name | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.preparation.approval (not .Values.preparation.enabled) }}
- "preparation.approval: signs an audit, but preparation.enabled is false; set it to true, or use `caspi approve`"
{{- end }}
{{- if and .Values.queue (kindIs "map" .Values.gang) }}
- "gang: with `queue`, Kueue admits all pods or none by itself; leave out one of them"
{{- end }}
{{- with .Values.storage.create }}
{{- if and (eq (.accessMode | default "ReadWriteMany") "ReadWriteOnce") $workers.spread (gt (int $workers.count) 1) }}
- "storage.create.accessMode: ReadWriteOnce mounts on one node only; say ReadWriteMany, or workers.spread: false"
{{- end }}
{{- end }}
{{- end }}

{{/* What is in the cluster already. Rendering without a cluster (helm template, Argo CD) sees nothing. */}}
{{- define "caspi-train.check-live" -}}
{{- $name := .Values.round.name }}
{{- $space := .Release.Namespace }}
{{- $job := lookup "kubeflow.org/v1" "PyTorchJob" $space $name }}
{{- $live := $job | default (lookup "v1" "ConfigMap" $space (printf "%s-round" $name)) }}
{{- $digest := dig "metadata" "annotations" "caspi.dev/spec-digest" "" $live }}
{{- if and $live (ne $digest .Values.round.digest) }}
- {{ printf "round.digest: %s in namespace %s is another round (%s, not %s); a changed round needs a new name" $name $space ($digest | trunc 8 | default "no digest") (.Values.round.digest | trunc 8) | quote }}
{{- else if eq (include "caspi-train.has-condition" (list $job "Failed")) "true" }}
- {{ printf "round.name: PyTorchJob %s has failed, and an upgrade can't start it again; helm uninstall %s, then install: it resumes from its last checkpoint" $name $name | quote }}
{{- else if .Values.preparation.enabled }}
{{- $gate := include "caspi-train.job-name" (list . "gate" (include "caspi-train.gate-spec" .)) }}
{{- if eq (include "caspi-train.has-condition" (list (lookup "batch/v1" "Job" $space $gate) "Failed")) "true" }}
- {{ printf "round.name: Job %s has failed, and an upgrade with the same values can't start it again; mend what its log says, helm uninstall %s, then install: what is prepared stays" $gate $name | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "caspi-train.check-claim" -}}
{{- if .Values.storage.create }}
{{- $claim := lookup "v1" "PersistentVolumeClaim" .Release.Namespace .Values.storage.claim }}
{{- if and $claim (ne (dig "metadata" "annotations" "meta.helm.sh/release-name" "" $claim) .Release.Name) }}
- {{ printf "storage.create: the claim %s is there already; leave out storage.create to use it" .Values.storage.claim | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" when a condition of an object holds: of a list, the object or an empty one, and the condition. */}}
{{- define "caspi-train.has-condition" -}}
{{- $wanted := index . 1 }}
{{- range dig "status" "conditions" list (index . 0) }}
{{- if and (eq .type $wanted) (eq .status "True") }}true{{ end }}
{{- end }}
{{- end }}
