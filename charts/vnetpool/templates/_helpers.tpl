{{/* A map of the values may be null, or missing where an upgrade reuses older ones: then `(.Values.a).b` is
nothing, and `.Values.a.b` an error. The schema requires those without which the chart can't do. */}}

{{/* Labels of every object, with the values' own. Argument: (list . "component"). */}}
{{- define "vnetpool.labels" -}}
{{ merge (include "vnetpool.ownLabels" . | fromYaml) ((first .).Values.commonLabels | default dict) | toYaml }}
{{- end }}

{{- define "vnetpool.ownLabels" -}}
{{- $root := first . -}}
{{ include "vnetpool.selector" . }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* What selects the pods of a component. It can't be changed once installed, so nothing of the
release is in it. */}}
{{- define "vnetpool.selector" -}}
app.kubernetes.io/name: vnetpool
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* The same and further ones of the values'. Argument: (list . "component" .Values.operator.podLabels). No
value takes a pod from its Deployment or DaemonSet. */}}
{{- define "vnetpool.labelsWith" -}}
{{- $component := list (first .) (index . 1) -}}
{{- $selected := include "vnetpool.selector" $component | fromYaml -}}
{{ merge $selected (last . | default dict) (include "vnetpool.labels" $component | fromYaml) | toYaml }}
{{- end }}

{{/* The Secrets for the registry: the values' and those of a parent chart, which may give names alone. */}}
{{- define "vnetpool.pullSecrets" -}}
{{- $names := list -}}
{{- $global := .Values.global | default dict -}}
{{- range concat ($global.imagePullSecrets | default list) (.Values.image.pullSecrets | default list) -}}
{{- if kindIs "string" . -}}
{{- $names = append $names . -}}
{{- else -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- with uniq $names -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
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

{{/* What the operator's pods and the hook's tolerate: all that keeps other pods away before there is a pod
network; and the values' own. */}}
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

{{/* The architectures that there are images for, as JSON. Values that an upgrade reuses may lack them. */}}
{{- define "vnetpool.architectures" -}}
{{ .Values.image.architectures | default (list "amd64") | toJson }}
{{- end }}

{{/* Fails for a node selector of an architecture that there is no image for: no node would suit both.
Argument: (list . "operator" .Values.operator). */}}
{{- define "vnetpool.nodeSelector" -}}
{{- $selector := (last .).nodeSelector -}}
{{- $wanted := get ($selector | default dict) "kubernetes.io/arch" -}}
{{- $there := include "vnetpool.architectures" (first .) | fromJsonArray -}}
{{- if and $wanted (not (has $wanted $there)) -}}
{{- $missing := "image.architectures must have %s, since %s.nodeSelector asks for it: name all" -}}
{{- fail (printf $missing $wanted (index . 1)) -}}
{{- end -}}
{{ $selector | toYaml }}
{{- end }}

{{/* What the label of a node must be for the images to run there. */}}
{{- define "vnetpool.imagesRun" -}}
{ key: kubernetes.io/arch, operator: In, values: {{ include "vnetpool.architectures" . }} }
{{- end }}

{{/* An affinity, and besides only nodes for which all of these expressions hold. Argument:
(list .Values.operator.affinity (list expression …)). One of its terms is enough for a node, so each gets
the expressions. */}}
{{- define "vnetpool.onlyOn" -}}
{{- $own := last . -}}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $affinity := deepCopy (first . | default dict) -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $terms := list -}}
{{- range (get $node $required | default dict).nodeSelectorTerms | default (list dict) -}}
{{- $terms = append $terms (set . "matchExpressions" (concat $own (.matchExpressions | default list))) -}}
{{- end -}}
{{ set $affinity "nodeAffinity" (set $node $required (dict "nodeSelectorTerms" $terms)) | toYaml }}
{{- end }}

{{/* Where a pod that runs to its end may be: wherever the image runs. */}}
{{- define "vnetpool.anyNode" -}}
{{ include "vnetpool.onlyOn" (list dict (list (include "vnetpool.imagesRun" . | fromYaml))) }}
{{- end }}

{{/* Where the operator may run: never two on a node, whatever else the values ask for. */}}
{{- define "vnetpool.operatorAffinity" -}}
{{- $own := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (include "vnetpool.operatorPods" . | fromYaml) -}}
{{- $required := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $runs := list (include "vnetpool.imagesRun" . | fromYaml) -}}
{{- $affinity := include "vnetpool.onlyOn" (list .Values.operator.affinity $runs) | fromYaml -}}
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

{{/* Where a program listens. Argument: (list . PORT). It is on the host's network, where every pod and the
whole VNet could ask: probes come from the node itself, and others see metrics only where the values allow
it. */}}
{{- define "vnetpool.addresses" -}}
- name: VNETPOOL_ADMIN_ADDRESS
  value: 127.0.0.1:{{ last . }}
{{- $monitoring := (first .).Values.monitoring }}
{{- if or ($monitoring).expose (($monitoring).podMonitors).enabled }}
- name: HOST_IP
  valueFrom: { fieldRef: { fieldPath: status.hostIP } }
- name: VNETPOOL_METRICS_ADDRESS
  value: $(HOST_IP):{{ last . }}
{{- end }}
{{- end }}

{{/* A component's probes. Argument: .Values.operator or .Values.nodeAgent. Values that an upgrade reuses may
lack them: without numbers of its own a probe has those of Kubernetes, which would end a slow start. */}}
{{- define "vnetpool.probes" -}}
{{- with (.probes).startup }}
startupProbe:
  httpGet: { host: 127.0.0.1, path: /healthz, port: admin }
  {{- toYaml . | nindent 2 }}
{{- end }}
livenessProbe:
  httpGet: { host: 127.0.0.1, path: /healthz, port: admin }
  {{- with (.probes).liveness }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
readinessProbe:
  httpGet: { host: 127.0.0.1, path: /readyz, port: admin }
  {{- with (.probes).readiness }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Where the agents may run: not on a virtual kubelet's node, where none could ever start, whatever else the
values ask for. */}}
{{- define "vnetpool.nodeAgentAffinity" -}}
{{- $real := dict "key" "type" "operator" "NotIn" "values" (list "virtual-kubelet") -}}
{{ include "vnetpool.onlyOn" (list .Values.nodeAgent.affinity (list $real (include "vnetpool.imagesRun" . | fromYaml))) }}
{{- end }}

{{/* So many revisions are kept; zero is a number, too. Argument: .Values.operator or .Values.nodeAgent. */}}
{{- define "vnetpool.revisions" -}}
{{- if not (kindIs "invalid" .revisionHistoryLimit) -}}
revisionHistoryLimit: {{ .revisionHistoryLimit }}
{{- end }}
{{- end }}
