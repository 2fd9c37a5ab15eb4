#!/usr/bin/env bash
# Gives the arms and cameras of this computer names that stay: /dev/mtdit/NAME. Arms are told apart
# by the serial number of their USB adapter, cameras by theirs, or by the USB port where several
# cameras have the same number.
# usage: udev.sh {--arm NAME=SERIAL | --camera NAME=SERIAL | --camera-port NAME=ID_PATH}...
#        udev.sh --remove
#        udev.sh --list         what is plugged in, as words for the lines above
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
RULES=/etc/udev/rules.d/99-mtdit.rules

main() {
  case ${1:-} in
    --list) list; return ;;
    --remove) run rm -f "$ROOT$RULES" ;;
    '') die "usage: udev.sh --arm NAME=SERIAL; see udev.sh --list" ;;
    *) rules=$(all_rules "$@")
      write "$RULES" <<< "$rules" ;;
  esac
  if [ -z "$ROOT" ] && command -v udevadm > /dev/null; then
    run udevadm control --reload
    run udevadm trigger --subsystem-match=tty --subsystem-match=video4linux
  fi
}

all_rules() {
  say "# Written by docker/udev.sh. ModemManager would talk to an arm that it takes for a modem."
  local names=' ' name value
  while [ $# -gt 0 ]; do
    [[ ${2:-} =~ ^([A-Za-z0-9_-]+)=([A-Za-z0-9_.:-]+)$ ]] \
      || die "$1 '${2:-}' is not NAME=VALUE of letters, digits and _ . : -: see udev.sh --list"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    [[ $names != *" $name "* ]] || die "the name $name is given twice: give every device its own"
    names+="$name "
    case $1 in
      --arm) rule tty "ATTRS{serial}==\"$value\", ENV{ID_MM_DEVICE_IGNORE}=\"1\"" dialout ;;
      --camera) rule video4linux "ATTR{index}==\"0\", ATTRS{serial}==\"$value\"" video ;;
      --camera-port) rule video4linux "ATTR{index}==\"0\", ENV{ID_PATH}==\"$value\"" video ;;
      *) die "unknown option $1: use --arm, --camera or --camera-port" ;;
    esac
    shift 2
  done
}

# rule SUBSYSTEM MATCHES GROUP: a line for the device $name. index 0 of a camera is its pictures.
rule() {
  say "SUBSYSTEM==\"$1\", $2, SYMLINK+=\"mtdit/$name\", GROUP=\"$3\", MODE=\"0660\""
}

list() {
  local device serial
  for device in "$ROOT"/sys/class/tty/ttyACM* "$ROOT"/sys/class/tty/ttyUSB*; do
    serial=$(up "$device" serial) && say "--arm follower=$serial    # ${device##*/}"
  done
  for device in "$ROOT"/sys/class/video4linux/video*; do
    serial=$(up "$device" serial) && [ "$(cat "$device/index" 2> /dev/null)" = 0 ] \
      && say "--camera top=$serial    # ${device##*/} $(cat "$device/name" 2> /dev/null)"
  done
  return 0
}

# up DEVICE FILE: the content of the nearest FILE in the folders above a device.
up() {
  local folder
  folder=$(readlink -f "$1/device" 2> /dev/null) || return 1
  while [ -n "$folder" ] && [ "$folder" != "$ROOT/sys" ] && [ "$folder" != / ]; do
    if [ -r "$folder/$2" ]; then cat "$folder/$2"; return 0; fi
    folder=$(dirname "$folder")
  done
  return 1
}

main "$@"
