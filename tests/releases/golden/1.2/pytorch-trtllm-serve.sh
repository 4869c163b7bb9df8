#!/usr/bin/env bash
# Made by the toolkit from FILE, runtime: docker.
set -euo pipefail


command=(
  # runtime.kind: docker
  docker run
  # removed when it ends; its name, for docker ps and docker stop
  --rm
  --name toolkit-llama3-70b-h100-pp4tp2-fp16-openai
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
  # ports 8000 at the address in the YAML: 127.0.0.1 of another network would not be this machine's
  --network host
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
  # read here, at its own place, never written
  --mount type=bind,source=/models/Meta-Llama-3-70B-Instruct,target=/models/Meta-Llama-3-70B-Instruct,readonly
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/repository/trtllm-serve.yaml,target=/OUTPUT/repository/trtllm-serve.yaml,readonly
  # NVIDIA's, with engine.version
  nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
  # the command itself
  trtllm-serve /models/Meta-Llama-3-70B-Instruct
  --host 127.0.0.1
  --port 8000
  --backend pytorch
  --tp_size 2
  --pp_size 4
  --max_batch_size 16
  --max_num_tokens 8192
  --max_seq_len 8192
  --extra_llm_api_options /OUTPUT/repository/trtllm-serve.yaml
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
