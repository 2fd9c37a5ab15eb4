"""What a computer says about itself: the JetPack release and power mode of a Jetson, the profile
of docker/compose.yaml that fits.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

from mtdit_runtime.check import FAIL, OK, WARN, Check, judged

# L4T release -> JetPack version. Source: NVIDIA's release notes.
JETPACKS = {
    "36.4.0": "JetPack 6.1",
    "36.4.3": "JetPack 6.2",
    "36.4.4": "JetPack 6.2.1",
    "36.4.7": "JetPack 6.2.1",
    "36.5.0": "JetPack 6.2.2",
    "36.5.2": "JetPack 6.2.3",
    "38.2.0": "JetPack 7.0",
    "38.4.0": "JetPack 7.1",
    "39.2.0": "JetPack 7.2",
    "39.2.1": "JetPack 7.2.1",
}
# L4T release -> its problem and the fix. Source: NVIDIA's release notes, community reports.
BAD_L4T = {
    "36.4.7": "CUDA cannot allocate memory although it is free: "
    "sudo apt update && sudo apt dist-upgrade (to 36.5.0)"
}
# major L4T release -> profile of docker/compose.yaml; docker/lib.sh has the same table
PROFILES = {36: "jp6", 38: "jp7", 39: "jp7"}
OLDEST_L4T = (36, 4)  # has TensorRT 10.3, the oldest version that builds our graphs


def check_platform(root: Path) -> Iterator[Check]:
    """Release and power mode of a Jetson, and the docker profile that fits this computer."""
    try:
        text = (root / "etc/nv_tegra_release").read_text()
    except OSError:
        has_driver = (root / "proc/driver/nvidia/version").exists()
        if has_driver and platform.machine() == "x86_64":
            yield Check("docker", OK, "profile rtx fits this computer, profile train for training")
        return
    yield from check_release(text)
    if release_of(text):
        yield _power_mode(root)


def release_of(text: str) -> tuple[int, int, int] | None:
    """The L4T release in the text of /etc/nv_tegra_release; None where it names none."""
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def check_release(text: str) -> Iterator[Check]:
    """The JetPack release and the docker profile that fits it, by /etc/nv_tegra_release."""
    numbers = release_of(text)
    if numbers is None:
        remedy = "compare with NVIDIA's list of L4T releases"
        yield Check("jetpack", WARN, f"unknown release {text[:40]!r}", remedy)
        return
    release = ".".join(map(str, numbers))
    finding = f"L4T {release} ({JETPACKS.get(release, 'unknown JetPack version')})"
    if release in BAD_L4T:
        yield Check("jetpack", FAIL, finding, BAD_L4T[release])
    else:
        remedy = "flash JetPack 6.1 or later: the TensorRT of this release is too old"
        yield judged("jetpack", numbers[:2] < OLDEST_L4T, finding, remedy)
    profile = PROFILES.get(numbers[0])
    known = ", ".join(f"R{major} {name}" for major, name in PROFILES.items())
    finding = f"profile {profile} fits" if profile else f"no profile for L4T R{numbers[0]}"
    remedy = f"there are {known}: flash one of these, or see docker/README.md"
    yield judged("docker", profile is None, finding, remedy)


def power_mode(root: Path = Path("/")) -> str | None:
    """The power mode of a Jetson as text; None on other computers."""
    return _power_mode(root).finding if (root / "etc/nv_tegra_release").is_file() else None


def _power_mode(root: Path) -> Check:
    """Reads nvpmodel's files: the number of the current mode, and the names of all modes."""
    try:
        number = re.search(r"pmode:(\d+)", (root / "var/lib/nvpmodel/status").read_text())
        names = dict(
            re.findall(r"POWER_MODEL ID=(\d+) NAME=(\S+)", (root / "etc/nvpmodel.conf").read_text())
        )
    except OSError as error:
        finding = f"unknown (cannot read {error.filename})"
        return Check("power", WARN, finding, "see `sudo nvpmodel -q`")
    mode = str(int(number[1])) if number else "?"
    fastest = next((n for n, name in names.items() if name.startswith("MAXN")), "0")
    slow = not names.get(mode, "").startswith("MAXN")
    remedy = f"for the shortest latency: sudo nvpmodel -m {fastest} && sudo jetson_clocks"
    return judged("power", slow, f"mode {mode} ({names.get(mode, 'unnamed')})", remedy)
