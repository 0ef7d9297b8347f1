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

{{- /* The configuration: with retrain.onDrift, monitors call who retrains. */}}
{{- define "oodmon.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $called := dig "drift" "retrain_webhook" dict $config | default dict }}
{{- if and .Values.retrain.onDrift (not $called.url) (not $called.url_file) }}
{{- $url := printf "%s://%s-retrain:9096/" (lower .Values.scheme) (include "oodmon.name" .) }}
{{- $config = mergeOverwrite $config (dict "drift" (dict "retrain_webhook" (dict "url" $url))) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- /* The pod of `oodmon retrain`: root, component, restart (its policy), listen (or it runs once). */}}
{{- define "oodmon.retrainPod" -}}
metadata:
  labels:
    {{- include "oodmon.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with .root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or .listen .root.Values.podAnnotations }}
  annotations:
    {{- if .listen }}
    checksum/config: {{ include "oodmon.config" .root | sha256sum }}
    {{- end }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  restartPolicy: {{ .restart }}
  automountServiceAccountToken: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "oodmon.podSecurityContext" .root | nindent 4 }}
  containers:
    - name: oodmon
      image: {{ include "oodmon.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [retrain, --config, /etc/oodmon/oodmon.yml, --json{{ if .listen }}, --listen, ":9096"{{ end }}]
      env:
        - name: GOMEMLIMIT
          value: {{ .root.Values.retrain.goMemLimit | quote }}
        {{- with .root.Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if .listen }}
      ports:
        - name: http
          containerPort: 9096
      livenessProbe:
        httpGet:
          path: /-/healthy
          {{- include "oodmon.probe" .root | nindent 10 }}
        periodSeconds: 10
        timeoutSeconds: 3
        failureThreshold: 6
      {{- end }}
      resources:
        {{- toYaml .root.Values.retrain.resources | nindent 8 }}
      securityContext:
        {{- include "oodmon.containerSecurityContext" .root | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/oodmon
          readOnly: true
        - name: registry
          mountPath: {{ .root.Values.config.model.registry }}
        - name: scratch
          mountPath: /tmp
        {{- with .root.Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "oodmon.name" .root }}
    - name: registry
      persistentVolumeClaim:
        claimName: {{ include "oodmon.claim" .root }}
    - name: scratch
      emptyDir:
        sizeLimit: {{ .root.Values.retrain.scratchSize }}
    {{- with .root.Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
