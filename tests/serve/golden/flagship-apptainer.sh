#!/usr/bin/env bash
# Where the ranks run:
#   stage 0: GPUs 0, 1 (NV18): layers 0-19
#   stage 1: GPUs 2, 3 (NV18): layers 20-39
#   stage 2: GPUs 4, 5 (NV18): layers 40-59
#   stage 3: GPUs 6, 7 (NV18): layers 60-79
#   cores 0-119,168-175, 16 for each GPU, and the memory of NUMA nodes 0-1
# Where each option of Triton and mpirun comes from:
#   --bind-to none: Open MPI binds each rank of a small group to one core, too few for Triton's threads
#   --oversubscribe: there may be fewer cores than ranks, and an orchestrator starts workers
#   plm, ras ^slurm: mpirun starts the ranks itself, also in a Slurm job, where srun makes a second group wait
#   --tag-output: marks every line with its rank, so that each rank has its own log
#   --model-repository: a copy of what toolkit repo made, in a path that has no special characters of a shell
#   --model-control-mode, --load-model: ranks above 0 load only the engine, and wait for rank 0
#   --*-address, --*-port: serving.host and the ports of the YAML
#   --exit-timeout-secs: serving.drain_timeout_s and a margin, so that the supervisor ends the drain, not Triton
#   --disable-auto-complete-config: the configs are complete; to complete them Triton would load models twice
#   --backend-config=python,shm-region-prefix-name: each rank of each run has shared memory of its own
#   --pinned-memory-pool-byte-size, --enable-peer-access, --cuda-memory-pool-byte-size: only the workers use GPUs
# Made by the toolkit from FILE, runtime: apptainer.
set -euo pipefail

run=$(mktemp -d "${TMPDIR:-/tmp}/toolkit-run-XXXXXXXX")  # for this start alone; remove it when it has ended
cp -r -- /OUTPUT/repository "$run/models"
command=(
  # the cores and the memory near the GPUs
  numactl
  --physcpubind=0-119,168-175
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
  # written here, and so on this machine
  --mount type=bind,source="$run",destination="$run"
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/engine,destination=/OUTPUT/engine,ro
  # the home is the user's own: Python packages in it are not for the image's Python
  --env PYTHONNOUSERSITE=1
  # for the command
  --env TOOLKIT_RUN_ID=dry-run
  # for the command
  --env TMPDIR="$run"
  # for the command
  --env TRTLLM_ORCHESTRATOR=1
  # the GPUs that it uses, as nvidia-smi counts them
  --env CUDA_DEVICE_ORDER=PCI_BUS_ID
  # the GPUs that it uses, as nvidia-smi counts them
  --env CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
  # the image; see runtime.image_file
  /images/trtllm.sif
  # 64 MiB of stack per thread, or the most that is allowed: with less, one request can end Triton
  sh -c 'umask 077; ulimit -S -s 65536 2>/dev/null || ulimit -S -s "$(ulimit -H -s)"; exec "$@"' sh
  # starts the ranks, and ends them all if one ends
  mpirun
  --allow-run-as-root
  --bind-to none
  --mca plm '^slurm'
  --mca ras '^slurm'
  --oversubscribe
  --tag-output
  # starts the ranks, as its workers
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --pinned-memory-pool-byte-size=0
  --enable-peer-access=false
  --cuda-memory-pool-byte-size=0:0
  --cuda-memory-pool-byte-size=1:0
  --cuda-memory-pool-byte-size=2:0
  --cuda-memory-pool-byte-size=3:0
  --cuda-memory-pool-byte-size=4:0
  --cuda-memory-pool-byte-size=5:0
  --cuda-memory-pool-byte-size=6:0
  --cuda-memory-pool-byte-size=7:0
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-0-
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
