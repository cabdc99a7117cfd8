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

{{- /* Not empty where guests attest to a broker outside the cluster. */ -}}
{{- define "assay.external" -}}
{{- with .Values.verifier.external -}}
{{- if and (not .url) (or .ca .addresses) -}}
{{- fail "verifier.external.url is missing beside ca or addresses: say https://host:port of the broker, or remove them" -}}
{{- end -}}
{{- if and .url (not (contains "-----BEGIN CERTIFICATE-----" .ca)) -}}
{{- fail "verifier.external.ca is not PEM of certificates: give what `assay-broker --print-ca` prints" -}}
{{- end -}}
{{- end -}}
{{- $url := .Values.verifier.external.url -}}
{{- if $url -}}
{{- range $setting, $value := dict "broker.secrets" .Values.broker.secrets "broker.auditLog.claim" .Values.broker.auditLog.claim "collateral" (include "assay.collateral" .) "denyList" (include "assay.denyList" .) -}}
{{- if $value -}}
{{- fail (printf "%s is for a broker in the cluster: say it in the configuration of the one at verifier.external.url, and remove it here" $setting) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $url -}}
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
