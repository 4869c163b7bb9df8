#!/usr/bin/env bash
# Made by the toolkit from FILE, runtime: host.
set -euo pipefail

mkdir -p -- /OUTPUT/run
export TOOLKIT_RUN_ID=1a2b3c4d
export TMPDIR=/OUTPUT/run/tmp
export CUDA_DEVICE_ORDER=PCI_BUS_ID
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
# HF_TOKEN is a secret: this script takes it from its environment, if it is set there.

command=(
  # the cores and the memory near the GPUs
  numactl
  --physcpubind=0-63,112-175
  --membind=0-1
  # the command itself
  mpirun -n 1 tritonserver
  --model-repository=/OUTPUT/repository
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
