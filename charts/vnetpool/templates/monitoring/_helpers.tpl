{{/* How Prometheus finds a program's pods. Argument: (list . "component"). */}}
{{- define "vnetpool.podMonitor" -}}
{{- $root := first . -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: vnetpool-{{ last . }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "vnetpool.labelsWith" (append . $root.Values.monitoring.labels) | nindent 4 }}
spec:
  selector:
    matchLabels: {{- include "vnetpool.selector" . | nindent 6 }}
  podMetricsEndpoints:
    - port: admin
      path: /metrics
      interval: {{ $root.Values.monitoring.podMonitors.interval }}
      relabelings:
        - { action: replace, sourceLabels: [__meta_kubernetes_pod_node_name], targetLabel: node }
{{- end }}

{{/* A Grafana dashboard, as JSON, of its description in monitoring/dashboards. Panels fill rows of 24
columns, two of them or three beside each other. */}}
{{- define "vnetpool.dashboard" -}}
{{- $datasource := dict "type" "prometheus" "uid" "${datasource}" -}}
{{- $panels := list -}}
{{- $y := 0 -}}
{{- range .rows -}}
{{- $panels = append $panels (dict "type" "row" "title" .title "collapsed" false "panels" list "id" (add1 (len $panels))
  "gridPos" (dict "x" 0 "y" $y "w" 24 "h" 1)) -}}
{{- $y = add1 $y -}}
{{- $width := div 24 (len .panels) -}}
{{- $x := 0 -}}
{{- range .panels -}}
{{- $targets := list -}}
{{- range $legend, $expr := .queries -}}
{{- $targets = append $targets (dict "refId" (printf "Q%d" (len $targets)) "expr" $expr "legendFormat" $legend
  "datasource" $datasource) -}}
{{- end -}}
{{- $style := dict "fillOpacity" 10 "stacking" (dict "mode" (ternary "normal" "none" (default false .stacked))) -}}
{{- $panels = append $panels (dict "type" "timeseries" "title" .title "description" (default "" .help)
  "id" (add1 (len $panels)) "gridPos" (dict "x" $x "y" $y "w" $width "h" 8) "datasource" $datasource "targets" $targets
  "fieldConfig" (dict "defaults" (dict "unit" (default "short" .unit) "min" 0 "custom" $style) "overrides" list)
  "options" (dict "legend" (dict "displayMode" "list" "placement" "bottom") "tooltip" (dict "mode" "multi"))) -}}
{{- $x = add $x $width -}}
{{- end -}}
{{- $y = add $y 8 -}}
{{- end -}}
{{- $variables := list (dict "name" "datasource" "type" "datasource" "query" "prometheus") -}}
{{- range $name, $query := .variables -}}
{{- $variables = append $variables (dict "name" $name "type" "query" "query" $query "datasource" $datasource "refresh" 2
  "includeAll" false "multi" false) -}}
{{- end -}}
{{- dict "uid" .uid "title" .title "tags" (list "vnetpool") "schemaVersion" 39 "editable" true "refresh" "30s"
  "time" (dict "from" "now-3h" "to" "now") "templating" (dict "list" $variables) "panels" $panels | toPrettyJson -}}
{{- end }}

{{/* The ConfigMap in which Grafana's sidecar finds a dashboard. Argument: (list . "name"). */}}
{{- define "vnetpool.dashboardObject" -}}
{{- $root := first . -}}
{{- $name := last . -}}
{{- $dashboard := $root.Files.Get (printf "monitoring/dashboards/%s.yaml" $name) | fromYaml -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: vnetpool-dashboard-{{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "vnetpool.labelsWith" (list $root "monitoring" $root.Values.monitoring.dashboards.labels) | nindent 4 }}
data:
  vnetpool-{{ $name }}.json: | {{- include "vnetpool.dashboard" $dashboard | nindent 4 }}
{{- end }}
