{{/*
Pods of Ray. All take (dict "root" $ "kind" "serve"|"train" "role" "head"|"worker" "group" values),
and the chart's own templates "<chart>.mounts", "<chart>.volumes", "<chart>.env", "<chart>.init".
*/}}

{{- define "raylm.podTemplate" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "raylm.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
    {{- with $root.Values.pod.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $root.Values.pod.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if not (and (eq .role "head") $root.Values.autoscaler.enabled) }}
  serviceAccountName: {{ include "raylm.name" $root }}
  automountServiceAccountToken: false
  {{- end }}
  enableServiceLinks: false
  {{- with $root.Values.image.pull_secrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $root.Values.priority.class_name }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- include "raylm.podSecurity" $root | nindent 4 }}
  terminationGracePeriodSeconds: {{ include (printf "%s.grace" .kind) . }}
  {{- with include "raylm.placement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include (printf "%s.init" .kind) . }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ printf "ray-%s" .role }}
      image: {{ include "raylm.image" (dict "image" $root.Values.image "version" $root.Chart.AppVersion) | quote }}
      imagePullPolicy: {{ $root.Values.image.pull_policy }}
      {{- include (printf "%s.container" .kind) . | nindent 6 }}
      env:
        {{- include (printf "raylm.env.%s" .kind) $root | nindent 8 }}
        {{- include (printf "%s.env" .kind) . | nindent 8 }}
        {{- range $name, $value := $root.Values.pod.env }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      {{- with $root.Values.store.credentials_secret }}
      envFrom:
        - secretRef:
            name: {{ . }}
      {{- end }}
      resources:
        {{- toYaml .group.resources | nindent 8 }}
      securityContext:
        {{- include "raylm.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- include (printf "%s.mounts" .kind) . | nindent 8 }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: {{ $root.Values.pod.tmp_size | quote }}
    {{- include (printf "%s.volumes" .kind) . | nindent 4 }}
{{- end }}

{{- define "raylm.placement" -}}
{{- $root := .root -}}
{{- with .group.node_selector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and (eq .role "worker") (ne $root.Values.spread "none") }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" (eq $root.Values.spread "require") }}
    labelSelector:
      matchLabels:
        {{- include "raylm.selector" $root | nindent 8 }}
        raylm-group: {{ .group.name }}
    # Of one cluster: those of an old and a new one do not count together.
    matchLabelKeys: [ray.io/cluster]
{{- end }}
{{- end }}
