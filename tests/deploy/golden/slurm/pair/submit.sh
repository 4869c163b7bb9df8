#!/usr/bin/env bash
# Made by `toolkit deploy` from smollm2-2x-rehearsal.yaml. Do not edit it: change the YAML and deploy again.
# Usage: bash submit.sh [NODES]. Submits the build, and serving on so many nodes when it has succeeded.
set -euo pipefail
folder=/tmp/slurm
count=${1:-1}
build=$(sbatch --parsable "$folder/build.sbatch")
# A build that fails leaves nothing waiting: Slurm removes what can never start.
serve=$(sbatch --parsable --dependency="afterok:$build" --kill-on-invalid-dep=yes --array="0-$((count - 1))" "$folder/serve.sbatch")
echo "build: $build"
echo "serve: $serve"
