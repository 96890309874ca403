{{/* What the pods of this chart share. */}}

{{- define "caspi-serve.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of pods: nothing that changes with the chart's version, or every upgrade would restart them. The chart's labels win
over the user's: the Service selects by them. */}}
{{- define "caspi-serve.podLabels" -}}
{{- $ours := dict
  "app.kubernetes.io/part-of" "caspi"
  "caspi.dev/round" (regexReplaceAll "-[0-9a-f]{8}$" .root.Values.round "")
-}}
{{- merge (include "caspi-serve.selector" . | fromYaml) $ours .root.Values.labels | toYaml -}}
{{- end -}}

{{- define "caspi-serve.labels" -}}
{{- $ours := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version)
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/managed-by" .root.Release.Service
-}}
{{- merge $ours (include "caspi-serve.podLabels" . | fromYaml) | toYaml -}}
{{- end -}}

{{- define "caspi-serve.metadata" -}}
name: {{ .name | default .root.Release.Name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "caspi-serve.labels" . | nindent 2 }}
{{- with .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "caspi-serve.image" -}}
image: {{ printf "%s@%s" .repository .digest }}
imagePullPolicy: {{ .pullPolicy | default "IfNotPresent" }}
{{- end -}}

{{/* What a container asks for is its limit. */}}
{{- define "caspi-serve.amounts" -}}
cpu: {{ .resources.cpu | quote }}
memory: {{ .resources.memory | quote }}
{{- with .resources.ephemeralStorage }}
ephemeral-storage: {{ . | quote }}
{{- end }}
{{- with .gpus }}
{{ .resource | default "nvidia.com/gpu" }}: {{ .count }}
{{- end }}
{{- end -}}

{{/* The restricted profile of Pod Security, and no token. */}}
{{- define "caspi-serve.pod" -}}
serviceAccountName: {{ .Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false # a Service called vllm would set VLLM_PORT, which vLLM reads
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "caspi-serve.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- define "caspi-serve.writable" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/caspi}
{{- end -}}

{{- define "caspi-serve.volumes" -}}
- name: rounds
  persistentVolumeClaim: {claimName: {{ .Values.storage.claim }}}
- {name: tmp, emptyDir: {}}
- {name: home, emptyDir: {}}
{{- end -}}
