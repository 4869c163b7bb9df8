#!/usr/bin/env bash
# Where the ranks run:
#   the GPUs are taken in their order, because their links are unknown: nobody looked
#   stage 0: GPUs 0, 1 (unknown): layers 0-19
#   stage 1: GPUs 2, 3 (unknown): layers 20-39
#   stage 2: GPUs 4, 5 (unknown): layers 40-59
#   stage 3: GPUs 6, 7 (unknown): layers 60-79
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
# Made by the toolkit from FILE, runtime: docker.
set -euo pipefail

run=$(mktemp -d "${TMPDIR:-/tmp}/toolkit-run-XXXXXXXX")  # for this start alone; remove it when it has ended
cp -r -- /OUTPUT/repository "$run/models"
command=(
  # runtime.kind: docker
  docker run
  # removed when it ends; its name, for docker ps and docker stop
  --rm
  --name toolkit-llama3-70b-h100-pp4tp2-fp16-serve
  # a first process that hands on signals and takes in orphans, as mpirun's ranks may become
  --init
  # an image of 14 GB is fetched when asked for, not at a start
  --pull=never
  # these GPUs and no others; inside they count from 0
  --gpus '"device=0,1,2,3,4,5,6,7"'
  # ranks share /dev/shm (64 MB in docker otherwise); the machine's own, where the toolkit sees and clears it
  --ipc=host
  # pinned host memory, for copies to the GPUs: no limit
  --ulimit memlock=-1
  # 64 MiB of stack a thread, as NVIDIA's images want
  --ulimit stack=67108864
  # ports 8000, 8001, 8002 at the address in the YAML: 127.0.0.1 of another network would not be this machine's
  --network host
  # docker stop kills after so many seconds; the default of 10 would cut a drain off
  --stop-timeout 50
  # files that it writes belong to who started it, not to root
  --user 1000:1000
  # a home that this user may write in: caches, compiled kernels
  --env HOME=/tmp
  --workdir /tmp
  # this user has no name in the image, and PyTorch asks for one
  --env USER=toolkit
  # hardware.host_memory_gb; over it the kernel kills
  --memory 256000000000
  # memory and swap together, so no swap: one rank that swaps stalls all
  --memory-swap 256000000000
  # hardware.cores_per_gpu 16 x 8
  --cpus 128
  # written here, and so on this machine
  --mount type=bind,source="$run",target="$run"
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/engine,target=/OUTPUT/engine,readonly
  # for the command
  --env TOOLKIT_RUN_ID=dry-run
  # for the command
  --env TMPDIR="$run"
  # NVIDIA's, with engine.version
  nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
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
