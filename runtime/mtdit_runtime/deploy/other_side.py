"""Whether a computer can take mtdit and a bundle: what is asked of it, and what is missing there.

Nothing is changed there. Every problem is a line that says what to type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from shlex import join, quote

from mtdit_runtime.check import OK
from mtdit_runtime.jetson import PROFILES, check_release, release_of

GROUPS = ("dialout", "video")  # may use the arm, and the cameras
NEEDED_MB = 1500  # the Python environment, and pip's copy of it meanwhile; as in docker/lib.sh
# Prints "mtdit KEY VALUE" lines; a login may print others. MTDIT_ROOT is empty but for tests.
_QUESTIONS = """
fact() { if [ -n "$2" ]; then printf 'mtdit %s %s\\n' "$1" "$2"; fi; }
has() { if "${@:2}" > /dev/null 2>&1; then fact has "$1"; fi; }
root=${MTDIT_ROOT:-}
fact user "$(id -un)"
fact groups "$(id -nG)"
if [ "$(id -u)" = 0 ]; then fact has every-group; fi
fact release "$(head -n 1 "$root/etc/nv_tegra_release" 2> /dev/null)"
if [ "$(uname -m)" = x86_64 ]; then has rtx test -e "$root/proc/driver/nvidia/version"; fi
has rsync command -v rsync
has python3-venv python3 -c 'import ensurepip, venv'
has python3-libnvinfer python3 -c 'import importlib.util as u; u.find_spec("tensorrt") or exit(1)'
has docker docker info
has compose docker compose version
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
fact free_mb "$(df -Pm "$folder" | awk 'NR == 2 { print $4 }')"
for device in "${devices[@]}"; do if [ ! -e "$root$device" ]; then fact missing "$device"; fi; done
for port in "$root"/dev/serial/by-id/* "$root"/dev/ttyACM* "$root"/dev/ttyUSB*; do
  if [ -e "$port" ]; then fact port "${port#"$root"}"; fi
done
"""


@dataclass(frozen=True)
class Wanted:
    """What a deployment needs of a computer. folder: from the home folder. megabytes: of disk.
    devices: files of /dev. typed: ssh and host, as a person types them.
    """

    folder: str
    megabytes: int
    devices: Sequence[str]
    tensorrt: bool
    image: bool
    typed: str


@dataclass(frozen=True)
class Facts:
    """What a computer said of itself. has: names of what is there. release: the first line of
    /etc/nv_tegra_release, empty on what is no Jetson.
    """

    user: str
    groups: Sequence[str]
    has: frozenset[str]
    release: str
    free_mb: int
    missing: Sequence[str]
    ports: Sequence[str]

    @property
    def target(self) -> str:
        """The target of docker/install.sh, which is the profile of docker/compose.yaml too."""
        release = release_of(self.release)
        return PROFILES.get(release[0], "") if release else "rtx"


def questions(wanted: Wanted) -> str:
    """The commands of bash that print the facts."""
    return f"folder={quote(wanted.folder)} devices=({join(wanted.devices)})\n{_QUESTIONS}"


def facts(lines: Sequence[str]) -> Facts:
    """The facts in what was printed."""
    told: dict[str, list[str]] = {}
    for line in lines:
        mark, _, rest = line.partition(" ")
        key, _, value = rest.partition(" ")
        if mark == "mtdit":
            told.setdefault(key, []).append(value)
    first = {key: values[0] for key, values in told.items()}
    return Facts(
        first.get("user", ""),
        first.get("groups", "").split(),
        frozenset(told.get("has", ())),
        first.get("release", ""),
        int(first.get("free_mb", "0")),
        told.get("missing", []),
        told.get("port", []),
    )


def problems(here: Facts, wanted: Wanted) -> Iterator[str]:
    """What is missing, each with what to type."""
    typed = wanted.typed.replace(" ", " -t ", 1)  # sudo asks for a password
    if here.release:
        bad = (check for check in check_release(here.release) if check.status != OK)
        yield from (f"{check.finding}: {check.remedy}" for check in bad)
    elif wanted.tensorrt and "rtx" not in here.has:
        known = "neither a Jetson nor an x86-64 computer with an NVIDIA driver"
        yield f"{known}: to compute on its CPU add --backend onnx"
    packages = ["rsync"] if wanted.image else ["rsync", "python3-venv"]
    absent = [name for name in packages if name not in here.has]
    if absent:
        packages_told = " and ".join(absent)
        yield f"no {packages_told} there: type {typed} sudo apt-get install -y {' '.join(absent)}"
    if wanted.tensorrt and not wanted.image and "python3-libnvinfer" not in here.has:
        install = f"type {typed} sudo apt-get install -y python3-libnvinfer"
        yield f"no TensorRT for Python there: {install}, or add --backend onnx"
    groups = [group for group in GROUPS if group not in here.groups]
    if groups and "every-group" not in here.has:
        join_them = f"sudo usermod -aG {','.join(groups)} {here.user}"
        yield f"{here.user} is not in {' and '.join(groups)}: type {typed} {join_them}"
    if wanted.image and not {"docker", "compose"} <= here.has:
        install = "sudo apt-get install -y docker.io docker-compose-v2"
        let_in = f"sudo usermod -aG docker {here.user}"
        yield f"{here.user} cannot use docker compose: type {typed} '{install}; {let_in}'"
    if here.free_mb < wanted.megabytes:
        other = "make room, or add --folder with one on another disk"
        yield f"{here.free_mb} MB free and {wanted.megabytes} are needed: {other}"
    if here.missing:
        there = f" (ports there: {', '.join(here.ports)})" if here.ports else ""
        plug = "plug it in, or correct mtdit.toml or --port"
        yield f"no {' and no '.join(here.missing)} there: {plug}{there}"
