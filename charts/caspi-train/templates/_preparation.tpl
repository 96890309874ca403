{{/* The Jobs that prepare a round: one that ends with the gate, and pods that share its work. */}}

{{/* Exit codes 2, 3 and 4 (docs/exit-codes.md): bad input, refused by the gate, failed for a reason that stays.
     Spec of a Job, of a dict: root, component, account, token, args, and shards (pods of an Indexed Job) or nil. */}}
{{- define "caspi-train.preparation-spec" -}}
{{- $root := .root }}
{{- $values := $root.Values.preparation -}}
{{- with .shards }}
completionMode: Indexed
completions: {{ . }}
parallelism: {{ . }}
{{- end }}
backoffLimit: 6
activeDeadlineSeconds: {{ $values.deadline | int }}
podFailurePolicy:
  rules:
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    - action: FailJob
      onExitCodes:
        operator: In
        values: [2, 3, 4]
template:
  metadata:
    labels:
      {{- include "caspi-train.pod-labels" (list $root .component) | nindent 6 }}
      sidecar.istio.io/inject: "false"
    annotations:
      {{- include "caspi-train.annotations" $root | nindent 6 }}
      caspi.dev/files-digest: {{ printf "%s\n%s" $root.Values.round.file $root.Values.cluster | sha256sum | quote }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ .account }}
    automountServiceAccountToken: {{ .token }}
    enableServiceLinks: false
    securityContext:
      {{- include "caspi-train.pod-security" $root | nindent 6 }}
    {{- with include "caspi-train.pull-secrets" $root | trim }}{{ . | nindent 4 }}{{ end }}
    {{- with include "caspi-train.placement" $values.placement | trim }}{{ . | nindent 4 }}{{ end }}
    containers:
      - name: prepare
        {{- include "caspi-train.container-image" ($root.Values.launcher | default $root.Values.image) | nindent 8 }}
        args:
          - prepare
          {{- include "caspi-train.round-args" $root | nindent 10 }}
          {{- range .args }}
          - {{ . | quote }}
          {{- end }}
        env:
          {{- include "caspi-train.env" $root | nindent 10 }}
          {{- with include "caspi-train.secret-env" (list "HF_TOKEN" $root.Values.secrets.huggingface) | trim }}{{ . | nindent 10 }}{{ end }}
        resources:
          {{- include "caspi-train.resources" (list $values.resources dict) | nindent 10 }}
        terminationMessagePolicy: FallbackToLogsOnError
        securityContext:
          {{- include "caspi-train.container-security" false | nindent 10 }}
        volumeMounts:
          {{- include "caspi-train.mounts" $root | nindent 10 }}
    volumes:
      {{- include "caspi-train.volumes" $root | nindent 6 }}
{{- end }}

{{- define "caspi-train.gate-spec" -}}
{{- $args := list (printf "--start=%s/%s" .Release.Namespace .Values.round.name) }}
{{- with .Values.queue }}
{{- $args = append $args (printf "--queue=%s" .) }}
{{- end }}
{{- with .Values.preparation.approval }}
{{- $args = concat $args (list
    (printf "--approve-by=%s" .by) (printf "--approve-reason=%s" .reason) (printf "--approve-audit=%s" .audit)) }}
{{- end }}
{{- include "caspi-train.preparation-spec" (dict
    "root" . "component" "gate" "account" (printf "%s-gate" .Values.round.name) "token" true "args" $args) }}
{{- end }}

{{/* "true" when nobody waits for a gate: prepared elsewhere, or this very gate has passed in this cluster already. */}}
{{- define "caspi-train.prepared" -}}
{{- if .Values.preparation.enabled }}
{{- $gate := include "caspi-train.job-name" (list . "gate" (include "caspi-train.gate-spec" .)) }}
{{- include "caspi-train.has-condition" (list (lookup "batch/v1" "Job" .Release.Namespace $gate) "Complete") }}
{{- else }}true
{{- end }}
{{- end }}

{{- define "caspi-train.assist-spec" -}}
{{- include "caspi-train.preparation-spec" (dict
    "root" . "component" "prepare" "account" .Values.round.name "token" false "args" (list "--assist")
    "shards" (sub (int .Values.preparation.shards) 1)) }}
{{- end }}
