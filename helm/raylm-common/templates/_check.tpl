{{/*
What is looked up in the cluster, where there is one: not by `helm template`, whose `lookup` finds
nothing. Every namespace has a service account `default`, which whoever installs may look at.
*/}}

{{- define "raylm.needSecret" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- if lookup "v1" "ServiceAccount" $namespace "default" -}}
{{- $found := lookup "v1" "Secret" $namespace .name -}}
{{- if not $found -}}
{{- fail (printf "%s: there is no secret %q in the namespace %s" .key .name $namespace) -}}
{{- end -}}
{{- range .entries -}}
{{- if not (hasKey ($found.data | default dict) .) -}}
{{- fail (printf "%s: the secret %q has no entry %q" $.key $.name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "raylm.needKubeRay" -}}
{{- if lookup "v1" "ServiceAccount" .root.Release.Namespace "default" -}}
{{- if not (.root.Capabilities.APIVersions.Has (printf "ray.io/v1/%s" .kind)) -}}
{{- fail (printf "this cluster has no %s of ray.io/v1: install the KubeRay operator 1.6 or later first" .kind) -}}
{{- end -}}
{{- end -}}
{{- end }}
