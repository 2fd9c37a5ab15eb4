"""docker/compose.yaml, key by key: no arm starts by itself, and a container may do little."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from docker_files import DOCKER

COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]

each = pytest.mark.parametrize("name", sorted(SERVICES))


def test_every_box_is_a_service_and_its_own_profile() -> None:
    assert set(SERVICES) == {"jp6", "jp7", "rtx", "train"}
    assert {name: one["profiles"] for name, one in SERVICES.items()} == {n: [n] for n in SERVICES}


@each
def test_nothing_gives_an_arm_torque_unasked(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "no"
    assert service["command"] == ["doctor"]
    assert service["stop_signal"] == "SIGINT"
    grace_s = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > 60, "longer than the longest return to the start pose"


@each
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert [place.partition(":")[0] for place in service["tmpfs"]] == ["/tmp", "/home/mtdit"]
    assert service["network_mode"] == "${MTDIT_NETWORK:-none}"
    assert service["user"].startswith("${MTDIT_UID:-1000}")
    assert service["group_add"] == ["20", "44"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "ports", "ipc", "pid"} & service.keys()
    targets = [
        volume.split(":")[-1 if volume.count(":") == 1 else -2] for volume in service["volumes"]
    ]
    assert service["volumes"][0] == "${MTDIT_FOLDER:-..}:/work"
    assert set(targets[1:]) <= {"/run/mtdit", "/etc/nv_tegra_release"}


@each
def test_it_is_built_from_its_own_dockerfile(name: str) -> None:
    build = SERVICES[name]["build"]
    file = DOCKER / build["context"] / build["dockerfile"]
    assert file.is_file()
    assert file.name.endswith(name)
    assert SERVICES[name]["image"] == f"mtdit:{name}"


def test_robots_have_devices_by_names_that_stay() -> None:
    for name in ("jp6", "jp7", "rtx"):
        assert SERVICES[name]["devices"]
        assert all(device.startswith("/dev/mtdit/") for device in SERVICES[name]["devices"])
    assert "devices" not in SERVICES["train"]


def test_every_service_gets_the_gpu() -> None:
    for name, service in SERVICES.items():
        if name.startswith("jp"):
            assert service["runtime"] == "nvidia"
        else:
            (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert gpu == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
