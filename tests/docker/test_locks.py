"""The pinned packages of docker/locks are what pyproject.toml and constraints.txt say today."""

from __future__ import annotations

import re

import pytest
import tomllib
from docker_files import DOCKER
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import ROOT

LOCKS = {  # file -> the extras in it
    "cuda12": ("runtime", "cuda"),
    "cuda13": ("runtime", "cuda"),
    "train": ("export", "runtime", "twin", "record"),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLD = "run `make lock`"


def pinned(text: str) -> dict[str, set[str]]:
    """Package -> its versions: a lock may have one for each Python."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def needed(extra: str) -> list[Requirement]:
    """What an extra asks for, also through other extras of mtdit."""
    found = []
    for text in PROJECT["optional-dependencies"][extra]:
        one = Requirement(text)
        found += [r for e in one.extras for r in needed(e)] if one.name == "mtdit" else [one]
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_the_project_asks_for(lock: str) -> None:
    text = (DOCKER / f"locks/{lock}.txt").read_text()
    versions = pinned(text)
    asked = [Requirement(one) for one in PROJECT["dependencies"]]
    asked += [one for extra in LOCKS[lock] for one in needed(extra)]
    for one in asked:
        if lock == "train" and one.marker and not one.marker.evaluate({"python_version": "3.12"}):
            continue
        found = versions.get(canonicalize_name(one.name), set())
        assert found, f"{one.name} is not in {lock}.txt: {OLD}"
        assert all(one.specifier.contains(version) for version in found), (
            f"{one}, not {found}: {OLD}"
        )
    for name, version in pinned((ROOT / "constraints.txt").read_text()).items():
        if not name.startswith("cuda-") and name in versions:
            assert versions[name] == version, f"{name} in {lock}.txt: {OLD}"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_checksums_and_no_address(lock: str) -> None:
    text = (DOCKER / f"locks/{lock}.txt").read_text()
    packages = re.split(r"^(?=[a-z])", text.partition("\n")[2], flags=re.M)[1:]
    assert len(packages) > 30
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text


def test_cudas_bindings_follow_the_target() -> None:
    for lock, major in (("cuda12", "12"), ("cuda13", "13")):
        versions = pinned((DOCKER / f"locks/{lock}.txt").read_text())["cuda-bindings"]
        assert {version.partition(".")[0] for version in versions} == {major}
