{{/* A RayJob's spec. */}}

{{- define "train.job" -}}
# The shell gives way to the driver, so that Ray sees its own exit code. The cluster's address is
# known there alone.
entrypoint: >-
  bash -c 'exec python -m raylm run -c /etc/raylm/raylm.yaml --base-dir {{ ternary "/data" "/tmp" (not (empty .Values.data_claim)) }}
  {{- with .Values.until }} --until {{ . }}{{ end }}
  --set cluster.address=$RAY_ADDRESS -o json'
# Each try is a new cluster; what was done is skipped, what was begun resumes.
backoffLimit: {{ .Values.retries }}
submissionMode: K8sJobMode
submitterConfig:
  # The submitter looks first whether its job is there already.
  backoffLimit: 2
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ .Values.keep_s }}
{{- with .Values.deadline_s }}
activeDeadlineSeconds: {{ . }}
{{- end }}
{{- if not .Values.schedule }}
suspend: {{ or .Values.suspend (not (empty .Values.queue.name)) }}
{{- end }}
submitterPodTemplate:
  metadata:
    labels:
      {{- include "raylm.selector" . | nindent 6 }}
      app.kubernetes.io/component: submitter
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "raylm.name" . }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with .Values.image.pull_secrets }}
    imagePullSecrets:
      {{- range . }}
      - name: {{ . }}
      {{- end }}
    {{- end }}
    securityContext:
      {{- include "raylm.podSecurity" . | nindent 6 }}
    containers:
      - name: ray-job-submitter
        image: {{ include "raylm.image" (dict "image" .Values.image "version" .Chart.AppVersion) | quote }}
        imagePullPolicy: {{ .Values.image.pull_policy }}
        env:
          - {name: HOME, value: /tmp}
          - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        resources:
          requests: {cpu: 100m, memory: 256Mi}
          limits: {cpu: "1", memory: 1Gi}
        securityContext:
          {{- include "raylm.containerSecurity" . | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - name: tmp
        emptyDir: {sizeLimit: 256Mi}
rayClusterSpec:
  {{- include "raylm.cluster" (dict "root" . "kind" "train") | nindent 2 }}
{{- end }}

{{/* raylm.yaml of the run. */}}
{{- define "train.run" -}}
{{- toYaml (merge (dict "store" (include "train.store" .)) .Values.config) -}}
{{- end }}
