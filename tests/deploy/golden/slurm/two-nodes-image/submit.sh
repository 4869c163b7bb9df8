#!/usr/bin/env bash
# Made by `toolkit deploy` from llama3.1-405b-h100-2x8-fp16.yaml. Do not edit it: change the YAML and deploy again.
# Usage: bash submit.sh [GROUPS]. Submits the build, and so many groups of 2 nodes when it has succeeded.
set -euo pipefail
folder=/tmp/slurm
count=${1:-1}
build=$(sbatch --parsable "$folder/build.sbatch")
# A build that fails leaves nothing waiting: Slurm removes what can never start.
serve=$(sbatch --parsable --dependency="afterok:$build" --kill-on-invalid-dep=yes --array="0-$((count - 1))" "$folder/serve.sbatch")
echo "build: $build"
echo "serve: $serve"
