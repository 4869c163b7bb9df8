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
# Made by the toolkit from FILE, runtime: host.
set -euo pipefail

run=$(mktemp -d "${TMPDIR:-/tmp}/toolkit-run-XXXXXXXX")  # for this start alone; remove it when it has ended
cp -r -- /OUTPUT/repository "$run/models"
export TOOLKIT_RUN_ID=dry-run
export TMPDIR="$run"
export CUDA_DEVICE_ORDER=PCI_BUS_ID
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7

command=(
  # the cores and the memory near the GPUs
  numactl
  --physcpubind=0-119,168-175
  --membind=0-1
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
  # rank 0: opens the ports and answers
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
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-0- :
  # rank 1: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-1- :
  # rank 2: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-2- :
  # rank 3: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-3- :
  # rank 4: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-4- :
  # rank 5: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-5- :
  # rank 6: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-6- :
  # rank 7: computes its part
  -n 1 /opt/tritonserver/bin/tritonserver
  --model-repository="$run"/models
  --model-control-mode=explicit
  --load-model=tensorrt_llm
  --http-address=127.0.0.1
  --http-port=8000
  --grpc-address=127.0.0.1
  --grpc-port=8001
  --metrics-address=127.0.0.1
  --metrics-port=8002
  --exit-timeout-secs=40
  --disable-auto-complete-config
  --backend-config=python,shm-region-prefix-name=toolkit-dry-run-7-
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
