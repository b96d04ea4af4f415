{{/*
Who may connect: Ray's ports are for the pods of the release and the KubeRay operator, metrics for
Prometheus too. (dict "root" $ "serves" true|false)
*/}}

{{- define "raylm.networkPolicy" -}}
{{- $root := .root -}}
{{- $policy := $root.Values.network_policy -}}
{{- if $policy.enabled }}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "raylm.name" $root }}
  labels:
    {{- include "raylm.labels" $root | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "raylm.selector" $root | nindent 6 }}
  policyTypes: [Ingress]
  ingress:
    # Each other, on whatever ports Ray's workers and Serve's replicas have.
    - from:
        - podSelector:
            matchLabels:
              {{- include "raylm.selector" $root | nindent 14 }}
    - from:
        - {{- toYaml $policy.operator | nindent 10 }}
      ports:
        - {port: 8265, protocol: TCP}
        - {port: 52365, protocol: TCP}
        {{- if .serves }}
        - {port: 8000, protocol: TCP}
        {{- end }}
    - from:
        - {{- toYaml $policy.prometheus | nindent 10 }}
      ports:
        - {port: 8080, protocol: TCP}
        {{- if .serves }}
        - {port: 8000, protocol: TCP}
        {{- end }}
    {{- if .serves }}
    - ports:
        - {port: 8000, protocol: TCP}
      {{- with $policy.clients }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- end }}
{{- end }}
{{- end }}

{{/* Ray's own metrics, of every pod. */}}
{{- define "raylm.podMonitor" -}}
{{- if .Values.monitoring.service_monitor }}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ include "raylm.name" . }}-ray
  labels:
    {{- include "raylm.labels" . | nindent 4 }}
    {{- with .Values.monitoring.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "raylm.selector" . | nindent 6 }}
  podMetricsEndpoints:
    - port: metrics
      interval: {{ .Values.monitoring.interval }}
{{- end }}
{{- end }}
