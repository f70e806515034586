{{- define "tollhouse.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Every service with all it has: facts from the sources, defaults, its own block. */}}
{{- define "tollhouse.services" -}}
{{- $root := . -}}
{{- $services := dict -}}
{{- range $name, $facts := .Files.Get "files/services.yaml" | fromYaml -}}
{{- $service := mergeOverwrite (deepCopy $root.Values.defaults) (deepCopy (index $root.Values.services $name)) -}}
{{- $_ := set $service "name" $name -}}
{{- $_ := set $service "facts" $facts -}}
{{- $_ := set $service "full" (printf "%s-%s" (include "tollhouse.fullname" $root) $name) -}}
{{- $_ := set $service "secretName" (default $service.full $service.secret.existing) -}}
{{- if and $service.autoscaling.enabled $service.keda.enabled -}}
{{- fail (printf "services.%s: autoscaling and keda would pull against each other; enable one of them." $name) -}}
{{- end -}}
{{- if and $service.keda.enabled (not $facts.consumers) -}}
{{- fail (printf "services.%s.keda: it consumes no events that it could be scaled by." $name) -}}
{{- end -}}
{{- $least := $service.replicas -}}
{{- if $service.autoscaling.enabled }}{{ $least = $service.autoscaling.minReplicas }}{{ end -}}
{{- if $service.keda.enabled }}{{ $least = $service.keda.minReplicas }}{{ end -}}
{{- $_ := set $service "least" (int $least) -}}
{{- $_ := set $service "scaled" (or $service.autoscaling.enabled $service.keda.enabled) -}}
{{- $_ := set $services $name $service -}}
{{- end -}}
{{- if not (or .Values.nats.bundled .Values.nats.url) -}}
{{- fail "nats.url is missing: the URL of an external NATS, or nats.bundled: true for a trial." -}}
{{- end -}}
{{- if and .Values.postgresql.bundled .Values.cloudnativepg.enabled -}}
{{- fail "postgresql.bundled and cloudnativepg.enabled: choose one of them." -}}
{{- end -}}
{{- if and (or .Values.ingress.enabled .Values.httpRoute.enabled) (not .Values.trustedProxies) -}}
{{- fail "trustedProxies is missing: the networks of the proxy in front, whose X-Forwarded-For the gateway shall believe." -}}
{{- end -}}
{{- $services | toYaml -}}
{{- end -}}

{{/* Labels that select: (list root component). */}}
{{- define "tollhouse.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "tollhouse.labels" -}}
{{- $root := index . 0 -}}
{{ include "tollhouse.selector" . }}
app.kubernetes.io/part-of: tollhouse
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* (list root service) */}}
{{- define "tollhouse.image" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- $repository := default (printf "%s/%s" $root.Values.images.registry $service.name) $service.image.repository -}}
{{- if $service.image.digest -}}
{{- printf "%s@%s" $repository $service.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $service.image.tag $root.Values.images.tag $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The restricted profile of the Pod Security Standards, and more: (list uid). */}}
{{- define "tollhouse.podSecurity" -}}
automountServiceAccountToken: false
# Kubernetes would set ITEMS_PORT=tcp://… for a Service named items, which is the name of a setting.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ index . 0 }}
  runAsGroup: {{ index . 0 }}
  fsGroup: {{ index . 0 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tollhouse.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "tollhouse.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tollhouse.natsUrl" -}}
{{- if .Values.nats.bundled -}}
nats://{{ include "tollhouse.fullname" . }}-nats:4222
{{- else -}}
{{ .Values.nats.url }}
{{- end -}}
{{- end -}}

{{/* A setting's value as the text of an environment variable. */}}
{{- define "tollhouse.text" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ . | toJson | quote }}{{ end -}}
{{- end -}}

{{/* Keys of the service's Secret that it is told of: (list root service). */}}
{{- define "tollhouse.secretKeys" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- $keys := deepCopy $service.facts.requiredSecrets -}}
{{- if $service.secret.existing -}}
{{- $keys = concat $keys $service.secret.optionalKeys -}}
{{- else -}}
{{- range $key := $service.facts.optionalSecrets -}}
{{- if hasKey $service.secret.values $key }}{{ $keys = append $keys $key }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $keys | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Environment of a service: what the chart decides, then settings of all, then its own, then env. (list root service) */}}
{{- define "tollhouse.env" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- $prefix := printf "%s_" (upper $service.name) -}}
{{- $full := include "tollhouse.fullname" $root -}}
{{- $values := dict
    "BIND_HOST" "0.0.0.0"
    "PORT" "8000"
    "LOG_FORMAT" "json"
    "SHUTDOWN_TIMEOUT" $root.Values.shutdownTimeout
    "TOKEN_ISSUER" $root.Values.publicUrl
    "JWKS_URL" (printf "http://%s-users:8000/.well-known/jwks.json" $full)
    "NATS_URL" (include "tollhouse.natsUrl" $root) -}}
{{- range $setting, $other := $service.facts.upstreams -}}
{{- $_ := set $values (printf "%s%s" $prefix $setting) (printf "http://%s-%s:8000" $full $other) -}}
{{- end -}}
{{- range $setting, $value := $service.facts.settings -}}
{{- $_ := set $values (printf "%s%s" $prefix $setting) $value -}}
{{- end -}}
{{- if and $root.Values.trustedProxies (eq $service.name "gateway") -}}
{{- $_ := set $values "GATEWAY_TRUSTED_PROXIES" $root.Values.trustedProxies -}}
{{- end -}}
{{- if $root.Values.metrics.enabled -}}
{{- $_ := set $values "METRICS_BIND_HOST" "0.0.0.0" -}}
{{- $_ := set $values "METRICS_PORT" $root.Values.metrics.port -}}
{{- end -}}
{{- range $key := include "tollhouse.secretKeys" . | fromJsonArray -}}
{{- $_ := set $values (printf "%s%s_FILE" $prefix ($key | upper | replace "-" "_")) (printf "/run/secrets/tollhouse/%s" $key) -}}
{{- end -}}
{{- range $setting, $value := $root.Values.settings -}}
{{- $_ := set $values $setting $value -}}
{{- end -}}
{{- range $setting, $value := $service.settings -}}
{{- $_ := set $values (printf "%s%s" $prefix $setting) $value -}}
{{- end -}}
{{- range $name, $value := $values }}
- name: {{ $name }}
  value: {{ include "tollhouse.text" $value }}
{{- end }}
{{- with $service.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The service's secrets as files, from its own Secret (and from CloudNativePG's): (list root service secretName) */}}
{{- define "tollhouse.volumes" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ index . 2 }}
          items:
          {{- range $key := include "tollhouse.secretKeys" (list $root $service) | fromJsonArray }}
            {{- if not (and (eq $key "database-url") $root.Values.cloudnativepg.enabled) }}
            - {key: {{ $key }}, path: {{ $key }}}
            {{- end }}
          {{- end }}
      {{- if and $service.facts.database $root.Values.cloudnativepg.enabled }}
      - secret:
          name: {{ $service.full }}-db-app
          items:
            - {key: uri, path: database-url}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end -}}

{{- define "tollhouse.mounts" -}}
- {name: secrets, mountPath: /run/secrets/tollhouse, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* A value of a Secret: given, or kept from before, or made up; the same wherever it is asked for. (list root secret key given) */}}
{{- define "tollhouse.secretValue" -}}
{{- $root := index . 0 -}}
{{- $secret := index . 1 -}}
{{- $key := index . 2 -}}
{{- $given := index . 3 -}}
{{- $id := printf "%s/%s" $secret $key -}}
{{- if not (hasKey $root.Values "madeUp") }}{{ $_ := set $root.Values "madeUp" dict }}{{ end -}}
{{- if $given -}}
{{- $given -}}
{{- else if hasKey $root.Values.madeUp $id -}}
{{- index $root.Values.madeUp $id -}}
{{- else if not $root.Values.secrets.generate -}}
{{- fail (printf "The Secret %s lacks %s: name a Secret of yours (secret.existing), give the value (secret.values), or set secrets.generate." $secret $key) -}}
{{- else -}}
{{- $before := dig "data" dict (lookup "v1" "Secret" $root.Release.Namespace $secret | default dict) -}}
{{- $value := "" -}}
{{- if hasKey $before $key -}}
{{- $value = index $before $key | b64dec -}}
{{- else if hasSuffix "-key" $key -}}
{{- $value = randBytes 32 -}}
{{- else -}}
{{- $value = randAlphaNum 32 -}}
{{- end -}}
{{- $_ := set $root.Values.madeUp $id $value -}}
{{- $value -}}
{{- end -}}
{{- end -}}

{{/* Data of a service's Secret: (list root service) */}}
{{- define "tollhouse.secretData" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- $given := $service.secret.values -}}
{{- range $key := include "tollhouse.secretKeys" . | fromJsonArray -}}
{{- $value := "" -}}
{{- if eq $key "database-url" -}}
{{- if $root.Values.cloudnativepg.enabled }}{{ continue }}{{ end -}}
{{- if and $root.Values.postgresql.bundled (not (index $given $key)) -}}
{{- $password := include "tollhouse.secretValue" (list $root $service.full "database-password" "") -}}
{{- $value = printf "postgresql://%s:%s@%s-postgresql:5432/%s" $service.name $password (include "tollhouse.fullname" $root) $service.name }}
database-password: {{ $password | b64enc }}
{{- else -}}
{{- $value = required (printf "services.%s.secret: give existing, or values.database-url, for the external PostgreSQL." $service.name) (index $given $key) -}}
{{- end -}}
{{- else -}}
{{- $value = include "tollhouse.secretValue" (list $root $service.full $key (index $given $key)) -}}
{{- end }}
{{ $key }}: {{ $value | b64enc }}
{{- end -}}
{{- end -}}

{{/* Where a peer list is empty: anywhere. */}}
{{- define "tollhouse.peers" -}}
{{- if . -}}
{{ toYaml . }}
{{- else -}}
- ipBlock: {cidr: 0.0.0.0/0}
- ipBlock: {cidr: "::/0"}
{{- end -}}
{{- end -}}

{{- define "tollhouse.egressDns" -}}
- to:
{{ toYaml .Values.networkPolicy.dns | indent 4 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{- define "tollhouse.egressNats" -}}
- to:
  {{- if .Values.nats.bundled }}
    - podSelector:
        matchLabels: {{ include "tollhouse.selector" (list . "nats") | nindent 10 }}
  {{- else }}
    {{- include "tollhouse.peers" .Values.nats.peers | nindent 4 }}
  {{- end }}
  ports:
    - {port: {{ .Values.nats.bundled | ternary 4222 .Values.nats.port }}, protocol: TCP}
{{- end -}}

{{/* (list root service) */}}
{{- define "tollhouse.egressDatabase" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
- to:
  {{- if $root.Values.postgresql.bundled }}
    - podSelector:
        matchLabels: {{ include "tollhouse.selector" (list $root "postgresql") | nindent 10 }}
  {{- else if $root.Values.cloudnativepg.enabled }}
    - podSelector:
        matchLabels: {cnpg.io/cluster: {{ $service.full }}-db}
  {{- else }}
    {{- include "tollhouse.peers" $service.database.peers | nindent 4 }}
  {{- end }}
  ports:
    - {port: {{ or $root.Values.postgresql.bundled $root.Values.cloudnativepg.enabled | ternary 5432 $service.database.port }}, protocol: TCP}
{{- end -}}

{{/*
Annotations of what must be there before the new pods: an ordinary resource on install, where everything starts at once and
waits for what it needs, and a hook before an upgrade (docs/adr/0007). (list root weight extra)
*/}}
{{- define "tollhouse.beforeUpgrade" -}}
{{- if (index . 0).Release.IsUpgrade }}
helm.sh/hook: pre-upgrade
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
{{- end -}}

{{/* The name of such a Job: on install it says what it ran, because a Job cannot be changed. (list root name image) */}}
{{- define "tollhouse.jobName" -}}
{{- if (index . 0).Release.IsUpgrade -}}
{{ index . 1 }}
{{- else -}}
{{ index . 1 }}-{{ index . 2 | sha256sum | trunc 8 }}
{{- end -}}
{{- end -}}
