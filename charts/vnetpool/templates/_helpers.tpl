{{/* Labels of every object. Argument: (list . "component"). */}}
{{- define "vnetpool.labels" -}}
{{- $root := first . -}}
{{ include "vnetpool.selector" . }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* What selects the pods of a component. It can't be changed once installed, so nothing of the release is in it. */}}
{{- define "vnetpool.selector" -}}
app.kubernetes.io/name: vnetpool
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Labels of a component's pods, with the values' own. Argument: (list . "component" .Values.operator). */}}
{{- define "vnetpool.podLabels" -}}
{{ include "vnetpool.labels" (list (first .) (index . 1)) }}
{{- with (last .).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "vnetpool.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* An image. Argument: (list . "operator" .Values.operator) or (list . "node-agent" .Values.nodeAgent). */}}
{{- define "vnetpool.image" -}}
{{- $root := first . -}}
{{- $missing := cat "image.registry must be given: the registry to which you pushed the images vnetpool/operator"
  "and vnetpool/node-agent, for example --set image.registry=registry.example/team" -}}
{{- $name := printf "%s/vnetpool/%s" (required $missing $root.Values.image.registry) (index . 1) -}}
{{- with (last .).imageDigest -}}
{{ $name }}@{{ . }}
{{- else -}}
{{ $name }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What the operator's pods and the hook's tolerate: all that keeps other pods away before there is a pod network; and the
values' own. */}}
{{- define "vnetpool.tolerations" -}}
- { key: node.kubernetes.io/not-ready, operator: Exists }
- { key: node.kubernetes.io/network-unavailable, operator: Exists }
- { key: node.cloudprovider.kubernetes.io/uninitialized, operator: Exists }
- { key: CriticalAddonsOnly, operator: Exists }
- { key: node-role.kubernetes.io/control-plane, operator: Exists }
{{- with .Values.operator.tolerations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where the operator may run: never two on a node, whatever else the values ask for. */}}
{{- define "vnetpool.operatorAffinity" -}}
{{- $own := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (include "vnetpool.operatorPods" . | fromYaml) -}}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $affinity := deepCopy (.Values.operator.affinity | default dict) -}}
{{- $anti := $affinity.podAntiAffinity | default dict -}}
{{- $anti = set $anti $required (prepend (get $anti $required | default list) $own) -}}
{{ set $affinity "podAntiAffinity" $anti | toYaml }}
{{- end }}

{{- define "vnetpool.operatorPods" -}}
matchLabels: {{- include "vnetpool.selector" (list . "operator") | nindent 2 }}
{{- end }}

{{/* Nothing of what the operator does needs a privilege. */}}
{{- define "vnetpool.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* The operator's user name in admission. */}}
{{- define "vnetpool.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:vnetpool-operator
{{- end }}

{{- define "vnetpool.nodeAgentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:vnetpool-node-agent
{{- end }}

{{/* Where a program listens. Argument: (list . PORT). It is on the host's network, where every pod and the whole VNet could ask:
probes come from the node itself, and others see metrics only where the values allow it. */}}
{{- define "vnetpool.addresses" -}}
- name: VNETPOOL_ADMIN_ADDRESS
  value: 127.0.0.1:{{ last . }}
{{- $monitoring := (first .).Values.monitoring }}
{{- if or $monitoring.expose $monitoring.podMonitors.enabled }}
- name: HOST_IP
  valueFrom: { fieldRef: { fieldPath: status.hostIP } }
- name: VNETPOOL_METRICS_ADDRESS
  value: $(HOST_IP):{{ last . }}
{{- end }}
{{- end }}

{{/* A component's probes. Argument: .Values.operator or .Values.nodeAgent. Values that an upgrade reuses may lack them. */}}
{{- define "vnetpool.probes" -}}
livenessProbe:
  httpGet: { host: 127.0.0.1, path: /healthz, port: admin }
  {{- with (.probes | default dict).liveness }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
readinessProbe:
  httpGet: { host: 127.0.0.1, path: /readyz, port: admin }
  {{- with (.probes | default dict).readiness }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Where the agents may run: not on a virtual kubelet's node, where none could ever start, whatever else the values ask for. */}}
{{- define "vnetpool.nodeAgentAffinity" -}}
{{- $own := dict "key" "type" "operator" "NotIn" "values" (list "virtual-kubelet") -}}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $affinity := deepCopy (.Values.nodeAgent.affinity | default dict) -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $terms := list -}}
{{- range (get $node $required | default dict).nodeSelectorTerms | default (list dict) -}}
{{- $terms = append $terms (set . "matchExpressions" (prepend (.matchExpressions | default list) $own)) -}}
{{- end -}}
{{ set $affinity "nodeAffinity" (set $node $required (dict "nodeSelectorTerms" $terms)) | toYaml }}
{{- end }}
