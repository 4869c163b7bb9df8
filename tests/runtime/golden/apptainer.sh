#!/usr/bin/env bash
# Made by the toolkit from FILE, runtime: apptainer.
set -euo pipefail

mkdir -p -- /OUTPUT/run
# HF_TOKEN is a secret: this script takes it from its environment, if it is set there.
if [ -n "${HF_TOKEN+set}" ]; then export APPTAINERENV_HF_TOKEN="$HF_TOKEN"; fi

command=(
  # the cores and the memory near the GPUs
  numactl
  --physcpubind=0-63,112-175
  --membind=0-1
  # runtime.kind: apptainer
  apptainer exec
  # PYTHONPATH, LD_LIBRARY_PATH and the like of this machine do not fit what is inside
  --cleanenv
  # values are taken as they are, also with a $ in them
  --no-eval
  # the driver's libraries and all GPUs; CUDA_VISIBLE_DEVICES chooses
  --nv
  # a working directory that can be written
  --pwd /tmp
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/engine,destination=/OUTPUT/engine,ro
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/repository,destination=/OUTPUT/repository,ro
  # written here, and so on this machine
  --mount type=bind,source=/OUTPUT/run,destination=/OUTPUT/run
  # the home is the user's own: Python packages in it are not for the image's Python
  --env PYTHONNOUSERSITE=1
  # for the command
  --env TOOLKIT_RUN_ID=1a2b3c4d
  # for the command
  --env TMPDIR=/OUTPUT/run/tmp
  # the GPUs that it uses, as nvidia-smi counts them
  --env CUDA_DEVICE_ORDER=PCI_BUS_ID
  # the GPUs that it uses, as nvidia-smi counts them
  --env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
  # the image; see runtime.image_file
  /WORK/images/tritonserver-26.07-trtllm-python-py3.sif
  # the command itself
  mpirun -n 1 tritonserver
  --model-repository=/OUTPUT/repository
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
