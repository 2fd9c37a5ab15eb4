#!/usr/bin/env bash
# Who may use the arm and the cameras: members of dialout and video.
# usage: user.sh create        the user mtdit (1000) of an image, in these two groups only
#        user.sh join NAME     adds a user of this computer to them
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Ubuntu's images have a user 1000 with the right to become root; it is replaced.
create() {
  local other
  other=$(getent passwd 1000 | cut -d: -f1) || true
  if [ -n "$other" ] && [ "$other" != mtdit ]; then run userdel --remove "$other" 2> /dev/null; fi
  if ! getent passwd mtdit > /dev/null; then
    run useradd --uid 1000 --create-home --shell /usr/sbin/nologin mtdit
  fi
  run usermod --groups dialout,video mtdit
  run install -d -o mtdit -g mtdit -m 700 "$ROOT/run/mtdit"
  run install -d -o mtdit -g mtdit "$ROOT/work"
}

join() {
  getent passwd "$1" > /dev/null || die "there is no user $1: add --user NAME"
  local group
  for group in dialout video; do
    getent group "$group" > /dev/null \
      || die "this system has no group $group: type sudo groupadd --system $group"
    if id -nG "$1" | tr ' ' '\n' | grep -qx "$group"; then continue; fi
    run usermod --append --groups "$group" "$1"
    say "  $1 joins $group: it counts from the next login on"
  done
}

case ${1:-} in
  create) create ;;
  join) join "${2:?user.sh join NAME}" ;;
  *) die "usage: user.sh create, or user.sh join NAME" ;;
esac
