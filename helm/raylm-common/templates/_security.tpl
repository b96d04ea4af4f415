{{/* The Pod Security Standard "restricted", and a root file system that nobody writes to. */}}

{{- define "raylm.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.pod.user }}
runAsGroup: {{ .Values.pod.user }}
fsGroup: {{ .Values.pod.user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "raylm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Of all pods but a head with an autoscaler, for which KubeRay makes one with its rights. */}}
{{- define "raylm.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "raylm.name" . }}
  labels:
    {{- include "raylm.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{- define "raylm.priorityClass" -}}
{{- if .Values.priority.create }}
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata:
  name: {{ required "priority.create needs priority.class_name" .Values.priority.class_name }}
  labels:
    {{- include "raylm.labels" . | nindent 4 }}
value: {{ .Values.priority.value }}
description: Pods of the release {{ .Release.Name }} in {{ .Release.Namespace }}
{{- end }}
{{- end }}
