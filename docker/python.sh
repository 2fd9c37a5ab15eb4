#!/usr/bin/env bash
# Makes a Python environment in FOLDER with mtdit and the pinned packages of a target; where that
# fails, nothing is left of it. The system's TensorRT can be imported from it.
# usage: python.sh TARGET FOLDER [WHEEL]      WHEEL: default: the newest in dist/
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  local target=${1:?python.sh TARGET FOLDER} folder=${2:?python.sh TARGET FOLDER} wheel
  target_facts "$target"
  wheel=${3:-$(newest_wheel)}
  check_wheel "$wheel"
  check_python
  need_disk "$folder" "$NEED_MB"
  place=$ROOT$folder # the trap reads it, after main has ended
  if [ -e "$place" ] && [ ! -e "$place/pyvenv.cfg" ]; then
    die "$folder is no Python environment: give another folder"
  fi
  if [ -z "$DRY_RUN" ]; then trap 'rm -rf "$place"' EXIT; fi
  run rm -rf "$place"
  run "$python" -m venv --system-site-packages "$place"
  pip=("$place/bin/python" -m pip --quiet --disable-pip-version-check)
  run "${pip[@]}" install --no-compile --ignore-installed --require-hashes -r "$HERE/locks/$LOCK"
  run "${pip[@]}" install --no-compile --no-deps "$wheel"
  if [ -n "$IMAGE" ]; then run "${pip[@]}" uninstall --yes pip; fi
  compile
  trap - EXIT
}

check_python() {
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null \
    || die "$python is not Python 3.10 to 3.13: set PYTHON to one that is"
  "$python" -c 'import ensurepip, venv' 2> /dev/null || [ -n "$DRY_RUN" ] \
    || die "$python cannot make environments: type sudo apt install python3-venv"
}

# Bytecode of what a run imports, and of nothing else: a fourth of the whole, and a read-only image
# could not write it at the first start.
compile() {
  run env PYTHONDONTWRITEBYTECODE= "$place/bin/python" -c 'import importlib
from mtdit_robots.extras import EXTRAS
ours = ("mtdit.cli.app", "mtdit.cli.terminal.tables", "mtdit_runtime.doctor.doctor")
for name in (*ours, *EXTRAS["runtime"]):
    importlib.import_module(name)'
}

main "$@"
