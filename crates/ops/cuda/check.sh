#!/usr/bin/env bash
# Type-checks the feature `cuda` on a machine without CUDA: no toolkit, no driver, no GPU.
set -euo pipefail
cd "$(dirname "$0")"
stub=$PWD
cd ../../..
export NVCC="$stub/nvcc" PATH="$stub:$PATH" CUDA_COMPUTE_CAP=80
exec "${CARGO:-cargo}" check --workspace --features stillhouse-cli/cuda,stillhouse-bench/cuda,stillhouse-trainer/cuda --locked "$@"
