#!/usr/bin/env bash
# Where each flag comes from:
#   checkpoint_dir                  toolkit convert
#   output_dir                      output
#   max_batch_size          16      limits.max_sequences 64 / (pp 4): the executor keeps one micro-batch a stage in flight
#   max_num_tokens          8192    limits.max_num_tokens
#   max_seq_len             8192    limits.max_seq_len
#   max_beam_width          1       in-flight batching here samples, it has no beams
#   kv_cache_type           paged   in-flight batching needs it
#   remove_input_padding    enable  in-flight batching needs it
#   tokens_per_block        32      kv_cache.tokens_per_block
#   use_paged_context_fmha  enable  kv_cache.reuse and scheduler.chunked_context need it
#   workers                 5       GPUs, and host memory for each rank; engine.workers
#   input_timing_cache              kept from build to build, in output
#   output_timing_cache             the same
#   gpt_attention_plugin    auto    in-flight batching needs it; model.dtype
#   gemm_plugin             auto    model.dtype; +9 % tokens/s in NVIDIA's tuning guide
#   context_fmha            enable  the default
#   multiple_profiles       enable  +19 % tokens/s in NVIDIA's tuning guide
#   nccl_plugin             auto    8 ranks talk by NCCL
#   log_level               info    progress is read from the log
# Made by the toolkit from FILE, runtime: docker.
set -euo pipefail

mkdir -p -- /OUTPUT

command=(
  # runtime.kind: docker
  docker run
  # removed when it ends; its name, for docker ps and docker stop
  --rm
  --name toolkit-llama3-70b-h100-pp4tp2-fp16-build
  # a first process that hands on signals and takes in orphans, as mpirun's ranks may become
  --init
  # an image of 14 GB is fetched when asked for, not at a start
  --pull=never
  # these GPUs and no others; inside they count from 0
  --gpus '"device=0,1,2,3,4"'
  # ranks share /dev/shm (64 MB in docker otherwise); the machine's own, where the toolkit sees and clears it
  --ipc=host
  # pinned host memory, for copies to the GPUs: no limit
  --ulimit memlock=-1
  # 64 MiB of stack a thread, as NVIDIA's images want
  --ulimit stack=67108864
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
  # hardware.cores_per_gpu 16 x 5
  --cpus 80
  # written here, and so on this machine
  --mount type=bind,source=/OUTPUT,target=/OUTPUT
  # read here, at its own place, never written
  --mount type=bind,source=/OUTPUT/checkpoint,target=/OUTPUT/checkpoint,readonly
  # NVIDIA's, with engine.version
  nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
  # the command itself
  trtllm-build
  --checkpoint_dir /OUTPUT/checkpoint
  --output_dir /OUTPUT/engine.building
  --max_batch_size 16
  --max_num_tokens 8192
  --max_seq_len 8192
  --max_beam_width 1
  --kv_cache_type paged
  --remove_input_padding enable
  --tokens_per_block 32
  --use_paged_context_fmha enable
  --workers 5
  --input_timing_cache /OUTPUT/timing-1.2.1-h100-sxm.cache
  --output_timing_cache /OUTPUT/timing-1.2.1-h100-sxm.cache
  --gpt_attention_plugin auto
  --gemm_plugin auto
  --context_fmha enable
  --multiple_profiles enable
  --nccl_plugin auto
  --log_level info
)
# In place of this shell, so that signals reach it.
exec "${command[@]}"
