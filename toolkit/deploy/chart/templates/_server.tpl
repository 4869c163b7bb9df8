{{/* The pod that serves: `toolkit up` with its door. Of a group over several nodes, the first one. */}}
{{- define "toolkit.server" -}}
metadata:
  labels: {{- include "toolkit.serving" . | nindent 4 }}
  annotations:
    # Another YAML starts the pods again.
    checksum/config: {{ .Files.Get (printf "files/%s" .Values.config) | sha256sum }}
spec:
  {{- include "toolkit.pod" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ .Values.graceSeconds }}
  {{- if or .Values.secrets.keys .Values.secrets.node }}
  initContainers:
    {{- if .Values.secrets.keys }}
    # Kubernetes lets the group read a secret's file, and the toolkit refuses keys that others can read.
    - name: keys
      {{- include "toolkit.container" . | nindent 6 }}
      command: [install, -m, "600", /secret/keys.txt, {{ .Values.secrets.keysFile | quote }}]
      volumeMounts:
        - {name: secret, mountPath: /secret, readOnly: true}
        - {name: keys, mountPath: {{ dir .Values.secrets.keysFile | quote }}}
    {{- end }}
    {{- if .Values.secrets.node }}
    # Kubernetes lets the group read a secret's file, and the toolkit refuses a key that others can read.
    - name: node
      {{- include "toolkit.container" . | nindent 6 }}
      command: [install, -m, "600", /secret/ca.pem, /secret/node.pem, /secret/node-key.pem, {{ .Values.secrets.nodeFolder | quote }}]
      volumeMounts:
        - {name: node-secret, mountPath: /secret, readOnly: true}
        - {name: node, mountPath: {{ .Values.secrets.nodeFolder | quote }}}
    {{- end }}
  {{- end }}
  containers:
    - name: serve
      {{- include "toolkit.container" . | nindent 6 }}
        {{- if .Values.traffic }}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        {{- end }}
      command: {{ if .Values.group.size }}[sh, /group/leader.sh]{{ else }}[toolkit, up, {{ printf "/deploy/%s" .Values.config | quote }}]{{ end }}
      ports:
        - {name: door, containerPort: {{ .Values.port }}}
        {{- range $number, $port := .Values.metricsPorts }}
        - {name: metrics-{{ $number }}, containerPort: {{ $port }}}
        {{- end }}
      {{- with .Values.resources }}
      resources: {{- toYaml . | nindent 8 }}
      {{- end }}
      # Until the first real token. Two load budgets: toolkit up itself may start a replica again once.
      startupProbe:
        {{- if .Values.etcd.ports }}
        # The door answers as soon as another pod serves. A rollout that asked the door would go on to the next pod before
        # this one has loaded. Exit code 0 is ready, and 1 degraded, which still answers.
        exec: {command: [sh, -c, {{ printf "toolkit status '/deploy/%s'; [ $? -le 1 ]" .Values.config | quote }}]}
        periodSeconds: 15
        timeoutSeconds: 30
        failureThreshold: {{ div (add .Values.startSeconds 14) 15 }}
        {{- else }}
        httpGet: {path: /v2/health/ready, port: door, scheme: {{ .Values.scheme }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ div (add .Values.startSeconds 9) 10 }}
        {{- end }}
      # Some replica answers{{ if .Values.etcd.ports }}, of this pod or another one{{ end }}. No key is needed for this path.
      readinessProbe:
        httpGet: {path: /v2/health/ready, port: door, scheme: {{ .Values.scheme }}}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # Only that the door listens: toolkit up heals the rest, and ends when it has given up.
      livenessProbe:
        tcpSocket: {port: door}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      lifecycle:
        # First the pod leaves the service, then toolkit up is asked to drain.
        preStop:
          exec: {command: [sleep, "{{ .Values.leaveSeconds }}"]}
      volumeMounts:
        {{- if .Values.group.size }}
        {{- include "toolkit.group.mounts" . | nindent 8 }}
        {{- end }}
        {{- include "toolkit.mounts" . | nindent 8 }}
        # Logs and state are this pod's own. What was built is shared, and only read.
        - {name: run, mountPath: {{ .Values.output.path | quote }}}
        {{- range .Values.output.reads }}
        - {name: data, mountPath: {{ printf "%s/%s" $.Values.output.path . | quote }}, subPath: {{ printf "%s/%s" $.Values.output.subPath . | quote }}, readOnly: true}
        {{- end }}
        {{- if .Values.traffic }}
        # Not in `run`, which ends with the pod. Not one for all: two pods would rotate it at once.
        - {name: data, mountPath: {{ .Values.traffic | quote }}, subPathExpr: {{ printf "%s/traffic/$(POD)" .Values.output.subPath | quote }}}
        {{- end }}
        {{- if .Values.secrets.keys }}
        - {name: keys, mountPath: {{ dir .Values.secrets.keysFile | quote }}, readOnly: true}
        {{- end }}
        {{- if .Values.secrets.node }}
        - {name: node, mountPath: {{ .Values.secrets.nodeFolder | quote }}, readOnly: true}
        {{- end }}
        {{- if .Values.secrets.tls }}
        - {name: tls, mountPath: {{ .Values.secrets.tlsFolder | quote }}, readOnly: true}
        {{- end }}
  volumes:
    {{- include "toolkit.volumes" . | nindent 4 }}
    {{- if .Values.group.size }}
    {{- include "toolkit.group.volumes" . | nindent 4 }}
    {{- end }}
    - {name: run, emptyDir: {}}
    {{- if .Values.secrets.keys }}
    - {name: secret, secret: {secretName: {{ .Values.secrets.keys }}}}
    - {name: keys, emptyDir: {medium: Memory}}
    {{- end }}
    {{- if .Values.secrets.node }}
    - {name: node-secret, secret: {secretName: {{ .Values.secrets.node }}}}
    - {name: node, emptyDir: {medium: Memory}}
    {{- end }}
    {{- if .Values.secrets.tls }}
    - {name: tls, secret: {secretName: {{ .Values.secrets.tls }}}}
    {{- end }}
{{- end }}
