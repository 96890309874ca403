{{/*
What the schema can't say: values that don't go together. All problems at once, each in a line with its way out.
*/}}
{{- define "caspi-serve.checks" -}}
{{- $problems := list -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" .Release.Name) -}}
{{- $problems = append $problems (printf "release %q: it names a Service, which starts with a letter and has a-z, 0-9 and - only; install it under another name" .Release.Name) -}}
{{- end -}}
{{- if eq .Values.engine "vllm" -}}
  {{- if not .Values.gpus -}}
  {{- $problems = append $problems "gpus: vLLM runs on GPUs; set gpus.count, or engine: caspi, which serves on a CPU too" -}}
  {{- end -}}
  {{- if and .Values.benchmark.enabled (not .Values.benchmark.image) -}}
  {{- $problems = append $problems "benchmark.image: vLLM's image has no Caspi in it; give the one of images/train, or benchmark.enabled: false" -}}
  {{- end -}}
  {{- if .Values.autoscaling.enabled -}}
  {{- $problems = append $problems "autoscaling: CPU use says nothing about a GPU; scale vLLM by `replicas`, or on its metrics from outside" -}}
  {{- end -}}
{{- else -}}
  {{- if and .Values.gpus (gt (int .Values.gpus.count) 1) -}}
  {{- $problems = append $problems (printf "gpus.count = %d: `caspi serve` uses one GPU; set it to 1 and replicas: %d" (int .Values.gpus.count) (int .Values.gpus.count)) -}}
  {{- end -}}
  {{- if and .Values.gpus .Values.autoscaling.enabled -}}
  {{- $problems = append $problems "autoscaling: CPU use says nothing about a GPU; scale by `replicas`" -}}
  {{- end -}}
{{- end -}}
{{- range $argument := .Values.vllm.args -}}
  {{- $flag := regexFind "^--?[A-Za-z-]+" $argument -}}
  {{- if eq $flag "--trust-remote-code" -}}
  {{- $problems = append $problems "vllm.args: --trust-remote-code would run code from a model folder; Caspi's models need none" -}}
  {{- else if has $flag (list "--host" "--port" "--served-model-name" "--model" "--tensor-parallel-size" "-tp" "--max-model-len" "--gpu-memory-utilization") -}}
  {{- $problems = append $problems (printf "vllm.args: %s comes from other values of this chart; leave it out" $flag) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.atMost) (int .Values.replicas)) -}}
{{- $problems = append $problems (printf "autoscaling.atMost = %d is less than replicas = %d, which is the least; raise it" (int .Values.autoscaling.atMost) (int .Values.replicas)) -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq (int .Values.replicas) 0) -}}
{{- $problems = append $problems "replicas = 0: an autoscaler that starts from none never starts; set at least 1, or autoscaling.enabled: false" -}}
{{- end -}}
{{- if $problems -}}
{{- $count := ternary "a problem" (printf "%d problems" (len $problems)) (eq (len $problems) 1) -}}
{{- printf "%s in the values of %s:\n  %s" $count .Release.Name (join "\n  " $problems) | fail -}}
{{- end -}}
{{- end -}}
