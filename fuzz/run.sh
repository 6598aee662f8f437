#!/usr/bin/env bash
# Runs fuzz targets for some seconds each: run.sh SECONDS [TARGET...] (default: all targets).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(jpeg png tiff bmp webp gif mat parquet archive lists)

# Seed the corpus with small files. Runs add their inputs to it.
golden=tests/golden/transforms/data own=crates/datasets/tests/data
seed() {
  local to="fuzz/corpus/$1"
  shift
  mkdir -p "$to" && cp "$@" "$to/"
}
seed jpeg "$golden"/*.jpg crates/jpeg/tests/data/*.jpg
seed png $(find "$golden" -name '*.png' -size -4k)
seed tiff "$golden"/*.tif
seed bmp "$golden"/*.bmp
seed mat "$own"/*.mat
seed parquet "$own"/*.parquet
mkdir -p fuzz/corpus/archive fuzz/corpus/lists
tar -cf fuzz/corpus/archive/own.tar -C "$own" make.py
tar -czf fuzz/corpus/archive/own.tgz -C "$own" make.py
(cd "$own" && python3 -m zipfile -c "$OLDPWD/fuzz/corpus/archive/own.zip" make.py) || echo "no python3: no zip in the seed corpus"
printf '1 001.Crow/a.jpg\n2 002.Jay/b.jpg\n\3771 1\n2 2\n\3771 1\n2 0\n\3771 001.Crow\n2 002.Jay\n' > fuzz/corpus/lists/own

for target in "${targets[@]}"; do
  echo "== $target, $seconds s"
  cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -max_len=65536
done
