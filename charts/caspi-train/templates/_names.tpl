{{/* Names, labels and annotations. */}}

{{/* The round's directory on the claim: /rounds/<name>-<first 8 of the digest>. */}}
{{- define "caspi-train.directory" -}}
{{ .Values.round.name }}-{{ .Values.round.digest | trunc 8 }}
{{- end }}

{{- define "caspi-train.image" -}}
{{ .repository }}@{{ .digest }}
{{- end }}

{{/* A Job can't be changed: its name carries a hash of its spec, so that a changed one is a new one.
     Takes a list: the root, a word, the spec as text. */}}
{{- define "caspi-train.job-name" -}}
{{ printf "%s-%s-%s" (index . 0).Values.round.name (index . 1) (index . 2 | sha256sum | trunc 8) }}
{{- end }}

{{/* What selects the pods of a round: of a list, the root and a component ("" for all). */}}
{{- define "caspi-train.selector" -}}
caspi.dev/round: {{ (index . 0).Values.round.name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* Labels of pods: no versions, which would change Jobs that needn't. Of a list, the root and a component. */}}
{{- define "caspi-train.pod-labels" -}}
{{ include "caspi-train.selector" . }}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/part-of: caspi
{{- with (index . 0).Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of objects: of a list, the root and a component. */}}
{{- define "caspi-train.labels" -}}
{{ include "caspi-train.pod-labels" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "caspi-train.annotations" -}}
caspi.dev/spec-digest: {{ .Values.round.digest | quote }}
{{- with .Values.annotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* name, namespace, labels, annotations of an object: of a list, the root, a component, and the name. */}}
{{- define "caspi-train.metadata" -}}
name: {{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "caspi-train.labels" . | nindent 2 }}
annotations:
  {{- include "caspi-train.annotations" (index . 0) | nindent 2 }}
{{- end }}
