#!/usr/bin/env bash
# Made by the toolkit from FILE, runtime: docker.
set -euo pipefail

mkdir -p -- /OUTPUT/run
# HF_TOKEN is a secret: this script takes it from its environment, if it is set there.

command=(
  # runtime.kind: docker
  docker run
  # removed when it ends; its name, for docker ps and docker stop
  --rm
  --name toolkit-flagship
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
  --stop-timeout 40
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
  # hardware.cores_per_gpu for each GPU, on its own NUMA node
  --cpuset-cpus 0-63,112-175
  # memory of the same NUMA nodes
  --cpuset-mems 0-1
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/engine,target=/OUTPUT/engine,readonly
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/repository,target=/OUTPUT/repository,readonly
  # written here, and so on this machine
  --mount type=bind,source=/OUTPUT/run,target=/OUTPUT/run
  # for the command
  --env TOOLKIT_RUN_ID=1a2b3c4d
  # for the command
  --env TMPDIR=/OUTPUT/run/tmp
  # a secret: by name, docker takes its value from here
  --env HF_TOKEN
  # NVIDIA's, with engine.version
  nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
  # the command itself
  mpirun -n 1 tritonserver
  --model-repository=/OUTPUT/repository
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
