#!/usr/bin/env bash
# Writes docker/locks/*.txt: every Python package of an image or of a bare-metal installation, with
# its version (that of constraints.txt) and its checksums. `make lock` runs it; it needs uv and a
# package index. The locks of the robot computers hold for Python 3.10 to 3.13, x86-64 and arm64.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$HERE/.."
uv=${UV:-$(command -v uv)} || die "uv is not installed: pip install uv"
# CUDA's bindings follow the CUDA of the target, everything else is pinned for all targets alike
pins=$(mktemp)
trap 'rm -f "$pins" "$pins".*' EXIT
grep -v '^cuda-' constraints.txt > "$pins"

# lock FILE CUDA WORDS...: resolves the extras in WORDS.
lock() {
  local file=docker/locks/$1
  echo "cuda-bindings$2" > "$pins.cuda"
  {
    echo "# Written by \`make lock\`: ${*:3}, cuda-bindings$2"
    "$uv" pip compile --quiet pyproject.toml "${@:3}" --generate-hashes --no-annotate --no-header \
      -c "$pins" -c "$pins.cuda"
  } > "$pins.lock"
  mkdir -p docker/locks
  mv "$pins.lock" "$file"
  say "$file: $(grep -c == "$file") packages"
}

robot=(--extra runtime --extra cuda --universal --python-version 3.10)
lock cuda12.txt '>=12.8,<13' "${robot[@]}"
lock cuda13.txt '>=13,<14' "${robot[@]}"
lock train.txt '>=13,<14' --extra export --extra runtime --extra twin --extra record \
  --python-platform x86_64-manylinux_2_35 --python-version 3.12
