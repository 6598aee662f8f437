#!/usr/bin/env bash
# Builds stub libraries of all functions that cudarc calls, each of which fails: a build with CUDA links
# and starts with them, and finds no GPU. `stubs.sh FOLDER` writes them there; requires a C compiler.
set -euo pipefail
folder=${1:?a folder for the libraries}
sources=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-0.*/src | sort -V | tail -1)
mkdir -p "$folder"
# library, source, soname, return value of its functions (100: no device)
while read -r name source soname code; do
  grep -hoE 'fn (cu[A-Za-z]|nvrtc|nccl)[A-Za-z0-9_]*' "$sources/$source/sys/mod.rs" | awk '{print $2}' |
    sort -u | sed "s/.*/int &(void) { return $code; }/" > "$folder/$name.c"
  cc -shared -fPIC -w -Wl,-soname,"$soname" -o "$folder/$soname" "$folder/$name.c"
  ln -sf "$soname" "$folder/lib$name.so"
done <<'LIBRARIES'
cuda driver libcuda.so.1 100
cublas cublas libcublas.so.13 1
cublasLt cublaslt libcublasLt.so.13 1
curand curand libcurand.so.10 100
nvrtc nvrtc libnvrtc.so.13 1
cudnn cudnn libcudnn.so.9 1001
cudart runtime libcudart.so.13 100
LIBRARIES
