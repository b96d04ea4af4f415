{{/* GCS fault tolerance: an existing Redis, or the included one. */}}

{{- define "serve.redisIncluded" -}}
{{- if and .Values.fault_tolerance.enabled (not .Values.fault_tolerance.address) }}true{{ end -}}
{{- end }}

{{- define "serve.redisSecret" -}}
{{- .Values.fault_tolerance.existing_secret | default (printf "%s-redis" (include "raylm.name" .)) -}}
{{- end }}

{{- define "raylm.faultTolerance" -}}
{{- $given := .Values.fault_tolerance }}
{{- if $given.enabled }}
gcsFaultToleranceOptions:
  redisAddress: {{ $given.address | default (printf "%s-redis:6379" (include "raylm.name" .)) | quote }}
  {{- if or $given.existing_secret (not $given.address) }}
  redisPassword:
    valueFrom:
      secretKeyRef:
        name: {{ include "serve.redisSecret" . }}
        key: {{ $given.password_key }}
  {{- end }}
{{- end }}
{{- end }}
