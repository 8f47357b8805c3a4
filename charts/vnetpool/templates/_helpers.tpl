{{/* Labels of every object. Call with (list . "component"). */}}
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

{{/* An image. Call with (list . "operator") or (list . "node-agent"). */}}
{{- define "vnetpool.image" -}}
{{- $root := first . -}}
{{ $root.Values.image.registry }}/vnetpool/{{ last . }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* What the operator's pods and the hook's tolerate: all that keeps other pods away before there is a pod network. */}}
{{- define "vnetpool.tolerations" -}}
- { key: node.kubernetes.io/not-ready, operator: Exists }
- { key: node.kubernetes.io/network-unavailable, operator: Exists }
- { key: node.cloudprovider.kubernetes.io/uninitialized, operator: Exists }
- { key: CriticalAddonsOnly, operator: Exists }
- { key: node-role.kubernetes.io/control-plane, operator: Exists }
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
