{{- define "oodmon.name" -}}
{{- if contains "oodmon" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-oodmon" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "oodmon.selector" -}}
app.kubernetes.io/name: oodmon
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "oodmon.labels" -}}
{{ include "oodmon.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
{{- end }}

{{- define "oodmon.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "oodmon.claim" -}}
{{ .Values.registry.existingClaim | default (printf "%s-registry" (include "oodmon.name" .)) }}
{{- end }}

{{- define "oodmon.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "oodmon.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "oodmon.probe" -}}
port: http
scheme: {{ .Values.scheme }}
{{- with .Values.probeHeaders }}
httpHeaders:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
