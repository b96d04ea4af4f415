{{/* Names and labels. Labels of pods have no version in them: it would make a new cluster. */}}

{{- define "raylm.name" -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" .Release.Name) -}}
{{- fail (printf "release name %q: 40 characters at most, a-z, 0-9 and -, the first a letter" .Release.Name) -}}
{{- end -}}
{{- .Release.Name -}}
{{- end }}

{{- define "raylm.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: raylm
{{- end }}

{{- define "raylm.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
{{ include "raylm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The image of a container: (dict "image" values "version" tag). */}}
{{- define "raylm.image" -}}
{{- $name := printf "%s:%s" .image.repository (.image.tag | default .version) -}}
{{- if .image.digest }}{{ $name = printf "%s@%s" $name .image.digest }}{{ end -}}
{{- $name -}}
{{- end }}
