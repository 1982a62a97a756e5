{{- define "tritonembed.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "tritonembed.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "tritonembed.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tritonembed.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Arguments: root, component (server or manager). */}}
{{- define "tritonembed.selector" -}}
app.kubernetes.io/name: {{ include "tritonembed.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tritonembed.labels" -}}
{{ include "tritonembed.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tritonembed.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "tritonembed.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "tritonembed.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* What a server loads: a name on the hub, or a path. */}}
{{- define "tritonembed.model" -}}
{{- $name := required "model.name is required: a name on the Hugging Face hub, or a path in model.source" .Values.model.name -}}
{{- if has .Values.model.source (list "hub" "container") -}}
{{- $name -}}
{{- else -}}
{{- printf "/models/%s" (trimPrefix "/" $name) -}}
{{- end -}}
{{- end -}}

{{- define "tritonembed.servedName" -}}
{{- if .Values.model.servedName -}}
{{- .Values.model.servedName -}}
{{- else if eq .Values.model.source "hub" -}}
{{- .Values.model.name -}}
{{- else -}}
{{- base .Values.model.name -}}
{{- end -}}
{{- end -}}

{{- define "tritonembed.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "tritonembed.fullname" .)) -}}
{{- end -}}

{{- define "tritonembed.tenantsSecret" -}}
{{- if .Values.tenants.existingSecret -}}
{{- .Values.tenants.existingSecret -}}
{{- else if .Values.tenants.list -}}
{{- printf "%s-tenants" (include "tritonembed.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "tritonembed.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tritonembed.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Spread constraints choose this component's own pods. Arguments: root, component, constraints. */}}
{{- define "tritonembed.spread" -}}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "tritonembed.selector" . | fromYaml)) -}}
{{- range .constraints }}
- {{ toYaml (merge (deepCopy .) $selector) | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* The kubelet has no client certificate. Arguments: mutual, path, scheme. */}}
{{- define "tritonembed.managerProbe" -}}
{{- if .mutual -}}
tcpSocket: {port: http}
{{- else -}}
httpGet: {path: {{ .path }}, port: http, scheme: {{ .scheme }}}
{{- end -}}
{{- end -}}
