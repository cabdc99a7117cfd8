{{- define "assay.labels" -}}
app.kubernetes.io/name: assay
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "assay.image" -}}
{{- $ref := index .root.Values.images .name | default "" -}}
{{- if not (regexMatch "^[^@[:space:]]+/[^@[:space:]]+@sha256:[0-9a-f]{64}$" $ref) -}}
{{- fail (printf "images.%s is %q: name the image by digest, as host/repository@sha256:<64 hex digits>" .name $ref) -}}
{{- end -}}
{{- $ref -}}
{{- end }}

{{- /* Not empty where the broker keeps collateral. */ -}}
{{- define "assay.collateral" -}}
{{- with .Values.collateral -}}{{- .url | default .claim -}}{{- end -}}
{{- end }}

{{- /* Not empty where the broker has volumes. */ -}}
{{- define "assay.brokerVolumes" -}}
{{- if or .Values.simulation.enabled .Values.broker.secrets .Values.broker.auditLog.claim (include "assay.denyList" .) (include "assay.collateral" .) -}}yes{{- end -}}
{{- end }}

{{- /* The deny list as the broker reads it, or nothing if it denies nothing. */ -}}
{{- define "assay.denyList" -}}
{{- with .Values.denyList -}}
{{- if or .chips .keys .providers -}}{{- toJson . -}}{{- end -}}
{{- end -}}
{{- end }}

{{- define "assay.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "assay.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "assay.scheduling" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
