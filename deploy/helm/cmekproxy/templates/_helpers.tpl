{{- define "cmekproxy.name" -}}
{{- if contains "cmekproxy" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-cmekproxy" (.Release.Name | trunc 40 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "cmekproxy.selector" -}}
app.kubernetes.io/name: cmekproxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cmekproxy.labels" -}}
{{ include "cmekproxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "cmekproxy.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "cmekproxy.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- /* The Secret with the certificate; empty for plain HTTP. */ -}}
{{- define "cmekproxy.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ .Values.tls.secretName | default (printf "%s-tls" (include "cmekproxy.name" .)) }}
{{- else }}{{ .Values.tls.secretName }}{{ end }}
{{- end }}

{{- /* The configuration: that of the values, and what the chart sets. */ -}}
{{- define "cmekproxy.config" -}}
{{- if gt (int .Values.shutdownDelaySeconds) (int .Values.shutdownGraceSeconds) }}
{{- fail "shutdownDelaySeconds is part of shutdownGraceSeconds, and must not be longer" }}
{{- end }}
{{- $chart := dict
  "listen" ":9000" "admin_listen" "127.0.0.1:9001"
  "health_listen" ":9002" "metrics_listen" ":9002"
  "limits" (dict
    "shutdown_delay" (printf "%ds" (int .Values.shutdownDelaySeconds))
    "shutdown_grace" (printf "%ds" (int .Values.shutdownGraceSeconds))) }}
{{- if include "cmekproxy.tlsSecret" . }}
{{- $_ := set $chart "tls" (dict "cert_file" "/etc/cmekproxy/tls/tls.crt" "key_file" "/etc/cmekproxy/tls/tls.key") }}
{{- end }}
{{- mustMergeOverwrite (deepCopy .Values.config) $chart | toYaml }}
{{- end }}
