#!/usr/bin/env bash
# Made by the toolkit from FILE, runtime: enroot.
set -euo pipefail

mkdir -p -- /OUTPUT/run
export NVIDIA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
# HF_TOKEN is a secret: this script takes it from its environment, if it is set there.

command=(
  # the cores and the memory near the GPUs
  numactl
  --physcpubind=0-63,112-175
  --membind=0-1
  # runtime.kind: enroot
  enroot start
  # its root can be written, in memory: gone when it ends
  --rw
  # read here, at its own place, never written
  --mount /OUTPUT/engine:/OUTPUT/engine:none:x-create=auto,rbind,ro
  # read here, at its own place, never written
  --mount /OUTPUT/repository:/OUTPUT/repository:none:x-create=auto,rbind,ro
  # written here, and so on this machine
  --mount /OUTPUT/run:/OUTPUT/run:none:x-create=auto,rbind,rw
  # the GPUs that it sees
  --env NVIDIA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
  # a home that can be written; enroot's own /tmp, in memory
  --env HOME=/tmp
  # for the command
  --env TOOLKIT_RUN_ID=1a2b3c4d
  # for the command
  --env TMPDIR=/OUTPUT/run/tmp
  # a secret: by name, enroot takes its value from here
  --env HF_TOKEN
  # the image, started as it is; see runtime.image_file
  /WORK/images/tritonserver-26.07-trtllm-python-py3.sqsh
  # the command itself
  mpirun -n 1 tritonserver
  --model-repository=/OUTPUT/repository
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
