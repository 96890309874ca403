{{/* What the pods of a round share. */}}

{{/* Pod Security "restricted", for a pod. */}}
{{- define "caspi-train.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The same for a container; `rdma` takes the one capability that pins memory. */}}
{{- define "caspi-train.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- if . }}
  add: [IPC_LOCK]
{{- end }}
{{- end }}

{{/* A container's image, of an `image` value. */}}
{{- define "caspi-train.container-image" -}}
image: {{ include "caspi-train.image" . }}
imagePullPolicy: {{ .pullPolicy | default "IfNotPresent" }}
{{- end }}

{{/* requests == limits, of a list: a `resources` value, and further resources by name. */}}
{{- define "caspi-train.resources" -}}
{{- $values := index . 0 }}
{{- $amounts := dict "cpu" $values.cpu "memory" $values.memory }}
{{- with $values.ephemeralStorage }}
{{- $_ := set $amounts "ephemeral-storage" . }}
{{- end }}
{{- range $name, $amount := index . 1 }}
{{- $_ := set $amounts $name ($amount | int | toString) }}
{{- end -}}
requests:
  {{- toYaml $amounts | nindent 2 }}
limits:
  {{- toYaml $amounts | nindent 2 }}
{{- end }}

{{/* Environment of every container. */}}
{{- define "caspi-train.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: HOME
  value: /home/caspi
- name: HF_HOME
  value: {{ ternary "/cache/huggingface" "/rounds/.cache/huggingface" (not (empty .Values.cache)) }}
{{- end }}

{{/* An environment variable from a Secret, of a list: its name, and a key of a Secret or null. */}}
{{- define "caspi-train.secret-env" -}}
{{- with index . 1 }}
- name: {{ index $ 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}

{{- define "caspi-train.mounts" -}}
- name: rounds
  mountPath: /rounds
{{- if .Values.cache }}
- name: cache
  mountPath: /cache
{{- end }}
- name: files
  mountPath: /etc/caspi
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/caspi
{{- end }}

{{- define "caspi-train.volumes" -}}
- name: rounds
  persistentVolumeClaim:
    claimName: {{ .Values.storage.claim }}
{{- with .Values.cache }}
- name: cache
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
- name: files
  configMap:
    name: {{ .Values.round.name }}-round
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
{{- end }}

{{/* Where the round is, as every command of a pod takes it. */}}
{{- define "caspi-train.round-args" -}}
- --round=/etc/caspi/round.yaml
- --cluster=/etc/caspi/cluster.yaml
- --runs=/rounds
- --digest={{ .Values.round.digest }}
{{- end }}

{{/* Makes or adopts the round directory and downloads the pinned base model, once for all pods.
     Of a list: the root, and a `resources` value. */}}
{{- define "caspi-train.fetch" -}}
{{- $root := index . 0 -}}
name: fetch
{{ include "caspi-train.container-image" $root.Values.image }}
args:
  - fetch
  {{- include "caspi-train.round-args" $root | nindent 2 }}
  - --failure-to=/tmp/fetch-failure.json
env:
  {{- include "caspi-train.env" $root | nindent 2 }}
  {{- with include "caspi-train.secret-env" (list "HF_TOKEN" $root.Values.secrets.huggingface) | trim }}{{ . | nindent 2 }}{{ end }}
resources:
  {{- include "caspi-train.resources" (list (index . 1) dict) | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- include "caspi-train.container-security" false | nindent 2 }}
volumeMounts:
  {{- include "caspi-train.mounts" $root | nindent 2 }}
{{- end }}

{{- define "caspi-train.pull-secrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* nodeSelector, tolerations and priority of a `placement` value, for pods without needs of their own. */}}
{{- define "caspi-train.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClass }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
