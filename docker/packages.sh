#!/usr/bin/env bash
# Installs what mtdit needs of the operating system: Python, and TensorRT with its Python bindings.
# usage: packages.sh TARGET [--without-tensorrt]
# A TensorRT that is installed already stays as it is. In an image (IMAGE) NVIDIA's apt source for
# Jetsons is added and TensorRT is pinned to the version that the host of this target has.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
JETSON=https://repo.download.nvidia.com/jetson

main() {
  local target=${1:?packages.sh TARGET} tensorrt=${2:-}
  target_facts "$target"
  need_root "$@"
  export DEBIAN_FRONTEND=noninteractive
  if [ "$tensorrt" = --without-tensorrt ] || installed python3-libnvinfer; then TENSORRT=; fi
  if [ -n "$IMAGE$TENSORRT" ] || ! installed python3-venv; then
    if [ -n "$IMAGE" ]; then sources "$target"; fi
    run apt-get update -q
    run apt-get install -q -y --no-install-recommends python3 python3-venv
    if [ -n "$TENSORRT" ]; then tensorrt "$target"; fi
  fi
  if [ -n "$IMAGE" ]; then tidy "$target"; fi
}

# What apt must know in an image. Hosts with JetPack have NVIDIA's source already.
sources() {
  if [ -n "$TENSORRT" ]; then
    write /etc/apt/preferences.d/mtdit-tensorrt << END
# engines run with the TensorRT that built them only
Package: libnvinfer* libnvonnxparsers* python3-libnvinfer*
Pin: version $TENSORRT
Pin-Priority: 1001
END
  fi
  [ "$1" = jp7 ] || return 0
  run apt-get update -q
  run apt-get install -q -y --no-install-recommends ca-certificates curl
  run mkdir -p "$ROOT/etc/apt/keyrings"
  run curl -fsSL "$JETSON/jetson-ota-public.asc" -o "$ROOT/etc/apt/keyrings/jetson.asc"
  write /etc/apt/sources.list.d/jetson.list << END
deb [signed-by=/etc/apt/keyrings/jetson.asc] $JETSON/common r39.2 main
END
}

tensorrt() {
  local packages=(libnvinfer10 libnvinfer-plugin10 libnvonnxparsers10 python3-libnvinfer)
  if [ -z "$DRY_RUN" ] && ! apt-cache show python3-libnvinfer > /dev/null 2>&1; then
    die "apt knows no TensorRT: add NVIDIA's apt source (JetPack has it; else" \
      "developer.nvidia.com/cuda-downloads, deb (network)), or add --without-tensorrt"
  fi
  # the sources of a host with JetPack have the one version that fits; NVIDIA's others have all
  if [ "$1" = rtx ] || [ -n "$IMAGE" ]; then packages=("${packages[@]/%/=$TENSORRT}"); fi
  run apt-get install -q -y --no-install-recommends "${packages[@]}"
}

# Images only: no lists of apt, and no CUDA libraries for desktop GPUs before a Jetson's driver.
tidy() {
  if [ "$1" = jp7 ]; then
    run apt-get purge -q -y --auto-remove curl
    run rm -rf "$ROOT"/usr/local/cuda*/compat
  fi
  run rm -rf "$ROOT/var/lib/apt/lists" "$ROOT/var/cache/apt/archives"
}

main "$@"
