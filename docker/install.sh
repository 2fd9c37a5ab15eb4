#!/usr/bin/env bash
# Installs mtdit on this computer without Docker, updates it, or removes it. It may be run again at
# any time: what is there already is left alone, and an update replaces the old version at the end.
usage='usage: sudo docker/install.sh [OPTION]...
  --target NAME            jp6, jp7, rtx or train; default: what this computer is
  --arm NAME=SERIAL        call the arm with this serial number /dev/mtdit/NAME; repeat
  --camera NAME=SERIAL     the same for a camera; --camera-port NAME=ID_PATH for one by its USB port
  --wheel FILE             the wheel to install; default: the newest in dist/ (make dist)
  --prefix FOLDER          where to install; default: /opt/mtdit
  --user NAME              who may use arm and cameras; default: who typed sudo
  --without-tensorrt       compute on the CPU
  --without-root           for you alone: no packages of the system, no names, no groups; the
                           command is in ~/.local/bin, and --prefix is ~/.local/share/mtdit
  --dry-run                say what would be done, and do nothing
  --uninstall              remove mtdit and its udev rules; packages of the system stay'
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
COMMAND=/usr/local/bin/mtdit

main() {
  target='' wheel='' prefix='' user='' tensorrt='' uninstall='' devices=() alone=''
  parse "$@"
  if [ -n "$alone" ]; then
    COMMAND=$HOME/.local/bin/mtdit prefix=${prefix:-$HOME/.local/share/mtdit}
  else
    prefix=${prefix:-/opt/mtdit} user=${user:-${SUDO_USER:-}}
  fi
  if [ -n "$uninstall" ]; then
    if [ -z "$alone" ]; then need_root "$@"; fi
    remove
    return
  fi
  if [ -z "$target" ]; then target=$(detect_target); fi
  target_facts "$target"
  check
  if [ -z "$alone" ]; then need_root "$@"; fi
  plan
  if [ -z "$alone" ]; then "$HERE/packages.sh" "$target" ${tensorrt:+"$tensorrt"}; fi
  environment
  if [ ${#devices[@]} -gt 0 ]; then "$HERE/udev.sh" "${devices[@]}"; fi
  if [ -n "$user" ]; then "$HERE/user.sh" join "$user"; fi
  finish
}

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) export DRY_RUN=yes ;;
      --uninstall) uninstall=yes ;;
      --without-tensorrt) tensorrt=$1 ;;
      --without-root) alone=yes ;;
      --help | -h) say "$usage"; exit 0 ;;
      --target | --wheel | --prefix | --user | --arm | --camera | --camera-port)
        [ -n "${2:-}" ] || die "$1 needs a value: see $0 --help"
        case $1 in
          --arm | --camera | --camera-port) devices+=("$1" "$2") ;;
          *) declare -g "${1#--}=$2" ;;
        esac
        shift ;;
      *) die "unknown option $1: see $0 --help" ;;
    esac
    shift
  done
}

# Everything that can be wrong is said before anything is changed.
check() {
  [[ $prefix = /?* ]] || die "--prefix $prefix is no full path: add --prefix /opt/mtdit"
  wheel=${wheel:-$(newest_wheel)}
  check_wheel "$wheel"
  if [ -e "$ROOT$COMMAND" ] && [ ! -L "$ROOT$COMMAND" ]; then
    die "$COMMAND is another program: move it away first"
  fi
  if [ -n "$alone" ] && [ -n "$user${devices[*]}" ]; then
    die "groups and names of devices need root: leave out --user, --arm and --camera," \
      "or --without-root"
  fi
  if [ ${#devices[@]} -gt 0 ]; then (DRY_RUN=yes "$HERE/udev.sh" "${devices[@]}" > /dev/null); fi
  if [ -n "$user" ]; then (DRY_RUN=yes "$HERE/user.sh" join "$user" > /dev/null); fi
  version=$(basename "$wheel" | cut -d- -f2)
  # the same wheel and the same packages are the same installation
  name=$version-$target-$(cat "$wheel" "$HERE/locks/$LOCK" | sha256sum | cut -c1-8)
  is_there=''
  if [ -e "$ROOT$prefix/$name/.complete" ]; then is_there=yes; fi
  if [ -z "$is_there" ]; then need_disk "$prefix" "$(needed_mb)"; fi
}

# TensorRT's packages, where they are missing, are larger than everything else.
needed_mb() {
  if [ -n "$tensorrt$alone" ] || [ -z "$TENSORRT" ] || installed python3-libnvinfer; then
    say "$NEED_MB"
  else
    say "$((NEED_MB + TENSORRT_MB))"
  fi
}

plan() {
  local from_apt='Python and TensorRT' packages="the packages of docker/locks/$LOCK"
  if [ -n "$tensorrt" ] || [ -z "$TENSORRT" ]; then from_apt='Python'; fi
  if [ -n "$alone" ]; then from_apt='nothing'; fi
  if [ -n "$is_there" ]; then packages='there already'; fi
  say "mtdit $version for $target, into $prefix/$name:"
  say "  1. by apt, where missing: $from_apt"
  say "  2. Python environment: $packages; the command: $COMMAND"
  say "  3. names in /dev/mtdit: ${devices[*]:-none asked for}"
  say "  4. in the groups dialout and video: ${user:-nobody (add --user NAME)}"
}

environment() {
  local old previous
  if [ -z "$is_there" ]; then
    "$HERE/python.sh" "$target" "$prefix/$name" "$wheel"
    run touch "$ROOT$prefix/$name/.complete"
  fi
  previous=$(readlink "$ROOT$prefix/current" 2> /dev/null || true)
  point "$name" "$prefix/current"
  point "$prefix/current/bin/mtdit" "$COMMAND"
  # the version before stays: a run that goes on may still need its files
  for old in $(versions); do
    if [ "$old" != "$name" ] && [ "$old" != "$previous" ]; then run rm -rf "$ROOT$prefix/$old"; fi
  done
}

# The names of what earlier installations left in the prefix.
versions() {
  local config
  for config in "$ROOT$prefix"/[0-9]*/pyvenv.cfg; do
    if [ -e "$config" ]; then basename "$(dirname "$config")"; fi
  done
}

# point TARGET LINK: the link points there from now on, without a moment in which it is missing.
point() {
  if [ "$(readlink "$ROOT$2" 2> /dev/null)" = "$1" ]; then return; fi
  run mkdir -p "$(dirname "$ROOT$2")"
  run ln -sfn "$1" "$ROOT$2.part"
  run mv -T "$ROOT$2.part" "$ROOT$2"
}

finish() {
  if [ -n "$DRY_RUN" ]; then
    say "nothing was changed: leave out --dry-run to do it"
    return
  fi
  if [ ${#devices[@]} -eq 0 ] && [ -z "$alone" ]; then "$HERE/udev.sh" --list; fi
  say "mtdit $version is installed: type mtdit doctor"
}

remove() {
  local old
  [ -L "$ROOT$prefix/current" ] \
    || die "mtdit is not installed in $prefix: if it is elsewhere, add --prefix FOLDER"
  say "removing mtdit from $prefix, the command mtdit and the names in /dev/mtdit;"
  say "packages of the system and memberships of groups stay, and so do bundles and calibrations"
  if [ "$(readlink "$ROOT$COMMAND")" = "$prefix/current/bin/mtdit" ]; then
    run rm "$ROOT$COMMAND"
  fi
  if [ -z "$alone" ]; then "$HERE/udev.sh" --remove; fi
  for old in $(versions); do run rm -rf "$ROOT$prefix/$old"; done
  run rm "$ROOT$prefix/current"
  run rmdir --ignore-fail-on-non-empty "$ROOT$prefix"
}

main "$@"
