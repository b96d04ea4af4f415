{{/* What pods that train have beside what all Ray pods have: see raylm-common/templates/_pod.tpl. */}}

{{/* A training that is told to stop saves before it ends. */}}
{{- define "train.grace" -}}120{{- end }}

{{- define "train.env" -}}
- name: RAYLM_STORE
  value: {{ include "train.store" .root | quote }}
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: "90"
{{- if not (hasKey (.group.resources.limits | default dict) "nvidia.com/gpu") }}
- name: DS_ACCELERATOR
  value: cpu
{{- end }}
{{- end }}

{{- define "train.container" -}}
ports:
  {{- if eq .role "head" }}
  - {name: gcs-server, containerPort: 6379}
  - {name: dashboard, containerPort: 8265}
  {{- end }}
  - {name: metrics, containerPort: 8080}
{{- end }}

{{- define "train.init" }}{{ end }}

{{- define "train.mounts" -}}
- name: run
  mountPath: /etc/raylm
  readOnly: true
{{- if .root.Values.store.claim }}
- name: store
  mountPath: /var/lib/raylm/store
  {{- with .root.Values.store.sub_path }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- if .root.Values.data_claim }}
- name: data
  mountPath: /data
  readOnly: true
{{- end }}
{{- end }}

{{- define "train.volumes" -}}
- name: run
  configMap:
    name: {{ include "raylm.name" .root }}-run
{{- with .root.Values.store.claim }}
- name: store
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- with .root.Values.data_claim }}
- name: data
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
{{- end }}

{{- define "train.store" -}}
{{- .Values.store.url | default "/var/lib/raylm/store" -}}
{{- end }}

{{- define "train.check" -}}
{{- if eq (empty .Values.store.claim) (empty .Values.store.url) -}}
{{- fail "store: one of store.claim (an existing PersistentVolumeClaim) and store.url is needed" -}}
{{- end -}}
{{- if and .Values.schedule .Values.queue.name -}}
{{- fail "schedule and queue.name: Kueue does not queue what a schedule makes" -}}
{{- end -}}
{{- with .Values.ray_auth.existing_secret -}}
{{- include "raylm.needSecret" (dict "root" $ "name" . "entries" (list "auth_token") "key" "ray_auth.existing_secret") -}}
{{- end -}}
{{- include "raylm.needKubeRay" (dict "root" . "kind" (ternary "RayCronJob" "RayJob" (not (empty .Values.schedule)))) -}}
{{- end }}
