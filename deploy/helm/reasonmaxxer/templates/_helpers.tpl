{{- define "reasonmaxxer.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of the pods: (dict "root" $ "part" "server") */}}
{{- define "reasonmaxxer.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "reasonmaxxer.labels" -}}
{{ include "reasonmaxxer.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "reasonmaxxer.account" -}}
{{- .Values.serviceAccount.name | default (ternary (include "reasonmaxxer.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The Secret with the keys; empty: there is none. */}}
{{- define "reasonmaxxer.secret" -}}
{{- if .Values.keys.secret -}}
{{- .Values.keys.secret -}}
{{- else if or .Values.keys.apiKey .Values.keys.adminKey .Values.keys.hfToken -}}
{{- printf "%s-keys" (include "reasonmaxxer.name" .) -}}
{{- end -}}
{{- end -}}

{{/* Seconds from preStop until the pod is killed: preStop, the drain, the flush of 5 s, and room. */}}
{{- define "reasonmaxxer.grace" -}}
{{- $least := add .Values.drain.preStop .Values.drain.shutdownTimeout 6 -}}
{{- $given := .Values.drain.gracePeriod -}}
{{- if kindIs "invalid" $given -}}
{{- add $least 9 -}}
{{- else if lt (int $given) (int $least) -}}
{{- fail (printf "drain.gracePeriod: %d s would kill requests in flight; it must be at least %d" (int $given) (int $least)) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* The YAML file of --config. */}}
{{- define "reasonmaxxer.config" -}}
{{- $own := dict "model" .Values.model.id "host" "0.0.0.0" "port" 8000 "log_format" "json" -}}
{{- $_ := set $own "shutdown_timeout" (int .Values.drain.shutdownTimeout) -}}
{{- if and .Values.adapters.url .Values.adapters.claim -}}
{{- fail "adapters: give url or claim, not both" -}}
{{- else if .Values.adapters.url -}}
{{- $_ := set $own "adapters" .Values.adapters.url -}}
{{- else if .Values.adapters.claim -}}
{{- $_ := set $own "adapters" "/adapters" -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- if hasKey $own $name -}}
{{- fail (printf "settings.%s: the chart sets it from a value of its own" $name) -}}
{{- end -}}
{{- $_ := set $own $name $value -}}
{{- end -}}
{{- if .Values.engine -}}
{{- $_ := set $own "engine" .Values.engine -}}
{{- end -}}
{{- toYaml $own -}}
{{- end -}}

{{- define "reasonmaxxer.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
