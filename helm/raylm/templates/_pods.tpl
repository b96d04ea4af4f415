{{/* What pods that serve have beside what all Ray pods have: see raylm-common/templates/_pod.tpl. */}}

{{/* Seconds that running answers may take, as Serve, Ray and the kubelet are told: each a little
     more than the one before, so that none cuts another short. */}}
{{- define "serve.rayDrain" -}}{{ add (ceil .Values.serve.drain_s) 10 }}{{- end }}
{{- define "serve.grace" -}}{{ add (ceil .root.Values.serve.drain_s) 30 }}{{- end }}

{{- define "serve.env" -}}
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ include "serve.rayDrain" .root | quote }}
{{- end }}

{{- define "serve.container" -}}
# KubeRay puts this in front of `ray start`.
command: [python, -m, raylm.deploy.kubernetes.pod]
ports:
  {{- if eq .role "head" }}
  - {name: gcs-server, containerPort: 6379}
  - {name: dashboard, containerPort: 8265}
  {{- end }}
  - {name: serve, containerPort: 8000}
  - {name: metrics, containerPort: 8080}
{{- if eq .role "worker" }}
lifecycle:
  preStop:
    # Until the nodes' proxies know that this pod takes no new connections.
    sleep:
      seconds: 5
readinessProbe:
  exec:
    command:
      - python
      - -m
      - raylm.deploy.kubernetes.probe
      - --token-every-s={{ .root.Values.probes.token_every_s }}
      - --timeout-s={{ .root.Values.probes.timeout_s }}
  periodSeconds: {{ .root.Values.probes.period_s }}
  timeoutSeconds: {{ add .root.Values.probes.timeout_s 2 }}
  failureThreshold: {{ .root.Values.probes.failures }}
{{- end }}
{{- end }}

{{/* A store by URL: the models are fetched and verified before Ray starts, in every pod. */}}
{{- define "serve.init" -}}
{{- if .root.Values.store.url }}
- name: models
  image: {{ include "raylm.image" (dict "image" .root.Values.image "version" .root.Chart.AppVersion) | quote }}
  imagePullPolicy: {{ .root.Values.image.pull_policy }}
  command: [raylm, models, verify]
  args:
    - --store={{ .root.Values.store.url }}
    {{- range .root.Values.models }}
    - {{ .ref | quote }}
    {{- end }}
  env:
    {{- include "raylm.env.serve" .root | nindent 4 }}
  {{- with .root.Values.store.credentials_secret }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  resources:
    requests: {cpu: 200m, memory: 512Mi}
    limits: {cpu: "1", memory: 1Gi}
  securityContext:
    {{- include "raylm.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}

{{- define "serve.mounts" -}}
- name: keys
  mountPath: /etc/raylm/keys
  readOnly: true
- name: client
  mountPath: /etc/raylm/client
  readOnly: true
{{- if .root.Values.store.claim }}
- name: store
  mountPath: /var/lib/raylm/store
  readOnly: true
  {{- with .root.Values.store.sub_path }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
- name: cache
  mountPath: /var/lib/raylm/cache
{{- end }}

{{- define "serve.volumes" -}}
{{- $keys := .root.Values.api_keys -}}
- name: keys
  secret:
    secretName: {{ $keys.existing_secret }}
    defaultMode: 0440
    items:
      - key: {{ $keys.keys_entry }}
        path: keys
- name: client
  secret:
    secretName: {{ $keys.existing_secret }}
    defaultMode: 0440
    items:
      - key: {{ $keys.client_entry }}
        path: key
{{- with .root.Values.store.claim }}
- name: store
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
- name: cache
  {{- if .root.Values.cache_claim }}
  persistentVolumeClaim:
    claimName: {{ .root.Values.cache_claim }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
