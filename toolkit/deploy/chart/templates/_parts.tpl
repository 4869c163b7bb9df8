{{/* What several files share. */}}

{{- define "toolkit.labels" -}}
app.kubernetes.io/name: {{ .Values.name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The pods that serve: what the service and the rest choose them by. */}}
{{- define "toolkit.serving" -}}
app.kubernetes.io/name: {{ .Values.name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: serve
{{- end }}

{{/* The pods of a load test. Another name: the network policy of what serves is not for them. */}}
{{- define "toolkit.loading" -}}
app.kubernetes.io/name: {{ .Values.name }}-load
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: loadtest
{{- end }}

{{/* The members of etcd. Another name, for the same reason. */}}
{{- define "toolkit.etcd" -}}
app.kubernetes.io/name: {{ .Values.name }}-etcd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: etcd
{{- end }}

{{/* Not root, and no right that serving does not need. fsGroup lets this user write to the volumes. */}}
{{- define "toolkit.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.user }}
  runAsGroup: {{ .Values.user }}
  fsGroup: {{ .Values.user }}
  # Without it, every start would change the owner of every file of the model.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "toolkit.container" -}}
image: {{ required "image: name the toolkit's image (deploy.image in the YAML)" .Values.image | quote }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
workingDir: /tmp
env:
  # A home that any user can write to: caches, compiled kernels. PyTorch asks for a user's name.
  - {name: HOME, value: /tmp}
  - {name: USER, value: toolkit}
{{- end }}

{{/* What every container of a pod sees. */}}
{{- define "toolkit.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: config, mountPath: /deploy, readOnly: true}
- {name: data, mountPath: {{ .Values.model.path | quote }}, subPath: {{ .Values.model.subPath | quote }}, readOnly: true}
# Ranks share /dev/shm, of which a pod has 64 MB otherwise.
- {name: shm, mountPath: /dev/shm}
{{- end }}

{{- define "toolkit.volumes" -}}
- {name: tmp, emptyDir: {}}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .Values.shm | quote }}}}
- {name: config, configMap: {name: {{ .Values.name }}}}
- {name: data, persistentVolumeClaim: {claimName: {{ required "claim: name the volume claim with the model (deploy.claim in the YAML)" .Values.claim | quote }}}}
{{- end }}

{{/* What the pods of a group reach each other with. */}}
{{- define "toolkit.group.mounts" -}}
- {name: group, mountPath: /group, readOnly: true}
- {name: ssh, mountPath: {{ .Values.group.keyFolder | quote }}, readOnly: true}
{{- end }}

{{- define "toolkit.group.volumes" -}}
- {name: group, configMap: {name: {{ .Values.name }}-group, defaultMode: 0555}}
- {name: ssh, secret: {secretName: {{ .Values.group.key | quote }}, defaultMode: 0440}}
{{- end }}
