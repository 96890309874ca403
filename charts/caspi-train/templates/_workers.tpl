{{/* What only the training pods have. */}}

{{/* A job waits, suspended, for its preparation. Once it is there, it stays as it is: the gate, Kueue or a person
     decided. Of a list: the root, and the live job or an empty one. */}}
{{- define "caspi-train.suspend" -}}
{{- $root := index . 0 }}
{{- $policy := dig "spec" "runPolicy" dict (index . 1) }}
{{- if and (index . 1) (hasKey $policy "suspend") }}
suspend: {{ $policy.suspend }}
{{- else if and (not (index . 1)) (ne (include "caspi-train.prepared" $root) "true") }}
suspend: true
{{- end }}
{{- end }}

{{/* Seconds for the training processes to save; the rest of the grace is for the pod to tell and to end. */}}
{{- define "caspi-train.shutdown-timeout" -}}
{{ max (sub (.Values.grace | int) 60) (div (.Values.grace | int) 2) }}
{{- end }}

{{- define "caspi-train.worker-env" -}}
{{ include "caspi-train.env" . }}
- name: CASPI_FETCH_FAILURE
  value: /tmp/fetch-failure.json
- name: HF_HUB_OFFLINE
  value: "1"
- name: CASPI_DEADLINE
  value: {{ .Values.deadline | int | quote }}
- name: CASPI_STARTS
  value: {{ .Values.retries.starts | int | quote }}
- name: CASPI_METRICS_PORT
  value: {{ .Values.metrics.port | int | quote }}
- name: TORCH_ELASTIC_SHUTDOWN_TIMEOUT
  value: {{ include "caspi-train.shutdown-timeout" . | quote }}
- name: NCCL_DEBUG
  value: {{ .Values.logLevel }}
- name: TORCH_NCCL_ASYNC_ERROR_HANDLING
  value: "1"
- name: TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC
  value: "300"
{{- include "caspi-train.secret-env" (list "WANDB_API_KEY" .Values.secrets.wandb) }}
{{- range $name, $value := .Values.workers.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Helm has no defaults inside of a value that is null by default: they stand here, as in the model of the values. */}}
{{- define "caspi-train.gpu-resource" -}}
{{ .resource | default "nvidia.com/gpu" }}
{{- end }}

{{/* Nodes with the right GPUs; a node for each pod when there are enough; off a lost node soon. */}}
{{- define "caspi-train.worker-placement" -}}
{{- $workers := .Values.workers }}
{{- $selector := deepCopy $workers.placement.nodeSelector }}
{{- $tolerations := $workers.placement.tolerations }}
{{- range list "not-ready" "unreachable" }}
{{- $tolerations = append $tolerations (dict
    "key" (printf "node.kubernetes.io/%s" .) "operator" "Exists" "effect" "NoExecute"
    "tolerationSeconds" (int $workers.lostNodeSeconds)) }}
{{- end }}
{{- with $workers.gpus }}
{{- $tolerations = append $tolerations (dict "key" (include "caspi-train.gpu-resource" .) "operator" "Exists" "effect" "NoSchedule") }}
{{- with .product }}
{{- $_ := set $selector "nvidia.com/gpu.product" . }}
{{- end }}
{{- end }}
{{- include "caspi-train.placement" (dict
    "nodeSelector" $selector "tolerations" $tolerations "priorityClass" $workers.placement.priorityClass) }}
{{- if $workers.spread }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "caspi-train.selector" (list . "train") | nindent 14 }}
{{- end }}
{{- end }}
