{{/* A RayCluster's spec: (dict "root" $ "kind" "serve"|"train"). */}}

{{- define "raylm.cluster" -}}
{{- $root := .root -}}
{{- $kind := .kind -}}
{{- $scales := $root.Values.autoscaler.enabled -}}
rayVersion: {{ include "raylm.rayVersion" $root | quote }}
authOptions:
  mode: token
  {{- with $root.Values.ray_auth.existing_secret }}
  secretName: {{ . }}
  {{- end }}
enableInTreeAutoscaling: {{ $scales }}
{{- if $scales }}
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ $root.Values.autoscaler.idle_timeout_s }}
  upscalingMode: {{ $root.Values.autoscaler.upscaling }}
  imagePullPolicy: {{ $root.Values.image.pull_policy }}
  resources:
    {{- toYaml $root.Values.autoscaler.resources | nindent 4 }}
  securityContext:
    {{- include "raylm.containerSecurity" $root | nindent 4 }}
  env:
    - name: HOME
      value: /tmp
    - name: RAY_USAGE_STATS_ENABLED
      value: "0"
  volumeMounts:
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- if eq $kind "serve" }}
{{- include "raylm.faultTolerance" $root }}
{{- end }}
headGroupSpec:
  rayStartParams:
    # No work: what the head runs besides is what all others depend on.
    num-cpus: "0"
    num-gpus: "0"
    dashboard-host: 0.0.0.0
    disable-usage-stats: "true"
  template:
    {{- include "raylm.podTemplate" (dict "root" $root "kind" $kind "role" "head" "group" $root.Values.head) | nindent 4 }}
workerGroupSpecs:
  {{- range $given := $root.Values.workers }}
  {{- /* Helm does not put defaults into the items of a list. */}}
  {{- $group := include "raylm.workerDefaults" $root | fromYaml }}
  {{- range $key, $value := $given }}
  {{- $_ := set $group $key $value }}
  {{- end }}
  {{- with $group }}
  {{- if gt (int .min) (int .max) }}
  {{- fail (printf "workers[%s]: min=%v is more than max=%v" .name .min .max) }}
  {{- end }}
  - groupName: {{ .name }}
    # With an autoscaler it alone says how many there are.
    {{- if not $scales }}
    replicas: {{ .min }}
    {{- end }}
    minReplicas: {{ .min }}
    maxReplicas: {{ ternary .max .min $scales }}
    {{- if and $scales (not (kindIs "invalid" .idle_timeout_s)) }}
    idleTimeoutSeconds: {{ .idle_timeout_s }}
    {{- end }}
    labels:
      raylm-group: {{ .name }}
    rayStartParams: {}
    template:
      {{- include "raylm.podTemplate" (dict "root" $root "kind" $kind "role" "worker" "group" .) | nindent 6 }}
  {{- end }}
  {{- end }}
{{- end }}
