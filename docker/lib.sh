#!/usr/bin/env bash
# What the scripts of this folder share: the table of targets, saying, doing or only showing, and
# refusing in one line. It is sourced, never run.
#
# ROOT     folder below which files are written and read; empty: this computer. Tests set it, and
#          put stand-ins for apt-get, usermod and the like on the PATH.
# DRY_RUN  not empty: what would change something is shown, and nothing is changed.
# IMAGE    not empty: an image is being built, so apt's sources may be changed. Dockerfiles set it.
# shellcheck disable=SC2034  # the scripts that source this use the rest
set -euo pipefail
export LC_ALL=C.UTF-8
umask 022 # what root installs, others read
ROOT=${ROOT:-}
DRY_RUN=${DRY_RUN:-}
IMAGE=${IMAGE:-}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# What a target needs: its file of pinned packages, its TensorRT, and MB of disk for either.
target_facts() {
  TENSORRT_MB=2500
  case $1 in
    jp6) LOCK=cuda12.txt TENSORRT='10.3.0.30*' NEED_MB=1500 ;;
    jp7) LOCK=cuda13.txt TENSORRT='10.16.2.10*' NEED_MB=1500 ;;
    rtx) LOCK=cuda13.txt TENSORRT='10.16.1.11-1+cuda13*' NEED_MB=1500 ;;
    train) LOCK=train.txt TENSORRT='' NEED_MB=15000 ;;
    *) die "unknown target '$1': use jp6 or jp7 (Jetsons), rtx, or train" ;;
  esac
}

# The target that fits this computer; dies with what to type where none does. PROFILES in
# runtime/mtdit_runtime/jetson.py is the same table.
detect_target() {
  local release=$ROOT/etc/nv_tegra_release line major minor
  if [ -r "$release" ]; then
    read -r line < "$release" || true
    major=$(sed -n 's/^# R\([0-9]*\) .*/\1/p' <<< "$line")
    minor=$(sed -n 's/.*REVISION: \([0-9]*\).*/\1/p' <<< "$line")
    case $major in
      36)
        [ "${minor:-0}" -ge 4 ] || die "JetPack 6.0 has too old a TensorRT: flash JetPack 6.1"
        say jp6
        ;;
      38 | 39) say jp7 ;;
      *) die "unknown JetPack (L4T R${major:-?}): known are R36 (jp6), R38 and R39 (jp7);" \
        "to try one add --target jp7" ;;
    esac
  elif [ -e "$ROOT/proc/driver/nvidia/version" ] && [ "$(uname -m)" = x86_64 ]; then
    say rtx
  else
    die "neither a Jetson nor an x86-64 computer with an NVIDIA driver:" \
      "to compute on the CPU add --target rtx --without-tensorrt"
  fi
}

installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

say() { printf '%s\n' "$*"; }

die() {
  printf 'mtdit: %s\n' "$*" >&2
  exit 2
}

# Does a command, or shows it.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '  would run:'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Writes standard input to a file below ROOT in one step, or shows it.
write() {
  local file=$ROOT$1
  if [ -n "$DRY_RUN" ]; then
    say "  would write $file:"
    sed 's/^/    /'
    return
  fi
  mkdir -p "$(dirname "$file")"
  cat > "$file.part"
  chmod 644 "$file.part"
  mv "$file.part" "$file"
}

need_root() {
  if [ -z "$ROOT$DRY_RUN" ] && [ "$(id -u)" != 0 ]; then
    die "this changes the system: type sudo $0 $*"
  fi
}

# need_disk FOLDER MB: free space where the folder is, or will be.
need_disk() {
  local folder=$ROOT$1 free
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df -Pm "$folder" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$2" ] || die "$folder has $free MB free and $2 are needed:" \
    "free some space, or add --prefix FOLDER on another disk"
}

# The wheel that `make dist` made last; nothing where there is none.
newest_wheel() {
  local wheel newest=
  for wheel in "$HERE"/../dist/mtdit-*.whl; do
    if [ -f "$wheel" ] && [ ! "$newest" -nt "$wheel" ]; then newest=$wheel; fi
  done
  say "$newest"
}

check_wheel() {
  [ -f "$1" ] || die "no wheel ${1:-in dist/}: type make dist on a computer with this" \
    "repository, and copy its dist/ here"
}
