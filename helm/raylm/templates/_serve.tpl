{{/* serveConfigV2: what Serve deploys. A change of it alone replaces replicas in place. */}}

{{- define "serve.config" -}}
{{- $values := .Values -}}
{{- $groups := list -}}
{{- range $values.workers }}{{ $groups = append $groups (.name | default "workers") }}{{ end -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  keep_alive_timeout_s: 90
logging_config:
  enable_access_log: false
  log_level: WARNING
applications:
  - name: raylm
    route_prefix: /
    import_path: raylm.serve.kube:app
    args:
      store: {{ include "serve.store" . | quote }}
      cache_root: /var/lib/raylm/cache/engine
      node_cpus: {{ include "serve.nodeCpus" . }}
      surge_percent: {{ $values.upgrade.surge_percent }}
      models:
        {{- range $values.models }}
        - ref: {{ .ref | quote }}
          {{- with .group }}
          {{- if not (has . $groups) }}
          {{- fail (printf "models: group %q is none of workers: %s" . (join ", " $groups)) }}
          {{- end }}
          labels:
            raylm-group: {{ . }}
          {{- end }}
        {{- end }}
      serve:
        {{- toYaml (merge (dict "host" "0.0.0.0" "port" 8000 "api_keys" "/etc/raylm/keys/keys") $values.serve) | nindent 8 }}
      engine:
        {{- toYaml $values.engine | nindent 8 }}
{{- end }}

{{- define "serve.store" -}}
{{- .Values.store.url | default "/tmp/raylm/store" -}}
{{- end }}

{{/* CPUs of the first group's pods, as KubeRay tells Ray: whole ones, rounded up. */}}
{{- define "serve.nodeCpus" -}}
{{- $group := index .Values.workers 0 -}}
{{- $resources := $group.resources | default (include "raylm.workerDefaults" . | fromYaml).resources -}}
{{- $limits := $resources.limits | default dict -}}
{{- $requests := $resources.requests | default dict -}}
{{- $cpu := toString ($limits.cpu | default $requests.cpu | default 1) -}}
{{- if hasSuffix "m" $cpu }}{{ ceil (divf (trimSuffix "m" $cpu) 1000) }}{{ else }}{{ ceil $cpu }}{{ end -}}
{{- end }}

{{/* What cannot work is said before anything is made. */}}
{{- define "serve.check" -}}
{{- $values := .Values -}}
{{- if not $values.models -}}
{{- fail "models is empty: name at least one, as in --set models[0].ref=demo-int8" -}}
{{- end -}}
{{- if eq (empty $values.store.claim) (empty $values.store.url) -}}
{{- fail "store: one of store.claim (an existing PersistentVolumeClaim) and store.url is needed" -}}
{{- end -}}
{{- $secret := required "api_keys.existing_secret is needed: the endpoint is reachable from other machines (README.md, Keys)" $values.api_keys.existing_secret -}}
{{- include "raylm.needSecret" (dict "root" . "name" $secret "entries" (list $values.api_keys.keys_entry $values.api_keys.client_entry) "key" "api_keys.existing_secret") -}}
{{- with $values.ray_auth.existing_secret -}}
{{- include "raylm.needSecret" (dict "root" $ "name" . "entries" (list "auth_token") "key" "ray_auth.existing_secret") -}}
{{- end -}}
{{- if and $values.serve.batches (not $values.cache_claim) -}}
{{- fail "serve.batches needs cache_claim: files and batches must outlive pods" -}}
{{- end -}}
{{- if eq $values.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{- if not $values.autoscaler.enabled -}}
{{- fail "upgrade.strategy=NewClusterWithIncrementalUpgrade needs autoscaler.enabled" -}}
{{- end -}}
{{- $_ := required "upgrade.strategy=NewClusterWithIncrementalUpgrade needs upgrade.incremental.gateway_class" $values.upgrade.incremental.gateway_class -}}
{{- end -}}
{{- include "raylm.needKubeRay" (dict "root" . "kind" "RayService") -}}
{{- end }}

{{/* host:port by which others in the namespace reach the endpoint. */}}
{{- define "serve.host" -}}
{{- if eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{ include "raylm.name" . }}-pods:8000
{{- else -}}
{{ include "raylm.name" . }}:{{ .Values.service.port }}
{{- end -}}
{{- end }}
