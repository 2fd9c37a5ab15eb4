"""The command that installs an extra is one that works for this installation."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

from mtdit_robots.errors import UserError
from mtdit_robots.extras import (
    EXTRAS,
    extra_of,
    install,
    missing,
    onnxruntime_wheels,
    reinstall_onnxruntime,
    require,
)


class Installed:
    """A distribution that was installed as `origin` says; None: by its name."""

    def __init__(self, origin: object) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "mtdit[twin]"'),
        ({"url": "file://{folder}", "dir_info": {}}, 'pip install "{folder}[twin]"'),
        (
            {"url": "file://{folder}", "dir_info": {"editable": True}},
            'pip install -e "{folder}[twin]"',
        ),
        ({"url": "file:///moved/mtdit.whl", "archive_info": {}}, 'pip install "./mtdit[twin]"'),
        (
            {"url": "https://a.example/mtdit.whl", "archive_info": {}},
            'pip install "mtdit[twin] @ https://a.example/mtdit.whl"',
        ),
        (
            {"url": "https://a.example/mtdit", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            'pip install "mtdit[twin] @ git+https://a.example/mtdit"',
        ),
    ],
)
def test_it_installs_from_where_mtdit_came_from(
    origin: object, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    if isinstance(origin, dict):
        origin = {**origin, "url": origin["url"].format(folder=folder.as_uri()[len("file://") :])}
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    assert install("twin") == command.format(folder=folder)


def test_without_an_installation_it_names_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> Installed:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nowhere)
    assert install("twin", "--upgrade") == 'pip install --upgrade "./mtdit[twin]"'


def test_a_missing_module_is_named_with_its_extra() -> None:
    assert str(missing("av")) == f"av is not installed: {install('record')}"
    said = str(missing("PIL", "cameras need Pillow"))
    assert said == f"cameras need Pillow, which is not installed: {install('runtime')}"
    said = str(missing("torch", "export needs torch", "export"))
    assert said == f"export needs torch, which is not installed: {install('export')}"
    assert extra_of("pyarrow.parquet") == "record"
    assert extra_of("numpy") is None


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("mujoco", ("mujoco, which is", "twin")),
        ("pyarrow av", ("pyarrow and av, which are", "record")),
        ("av mujoco pyarrow", ("mujoco, pyarrow and av, which are", "twin,record")),
    ],
)
def test_all_missing_modules_are_named_at_once(
    absent: str, said: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = ("mujoco", "pyarrow", "av")
    require("simulate", *modules)
    for module in absent.split():
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as raised:
        require("simulate", *modules)
    assert str(raised.value) == f"simulate needs {said[0]} not installed: {install(said[1])}"


def test_every_extra_is_one_of_the_project() -> None:
    assert set(EXTRAS) <= set(project_extras())


# --- two wheels for one folder


def project_extras() -> dict[str, list[str]]:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras: dict[str, list[str]] = tomllib.loads(text)["project"]["optional-dependencies"]
    return extras


def onnxruntimes_of(extra: str) -> set[str]:
    """The wheels of ONNX Runtime that an extra brings, also through other extras."""
    wheels: set[str] = set()
    for need in project_extras()[extra]:
        inner = re.fullmatch(r"mtdit\[([^\]]+)\]", need)
        for name in inner[1].split(",") if inner else ():
            wheels |= onnxruntimes_of(name)
        if need.startswith("onnxruntime"):
            wheels.add(re.split(r"[<>=!~ ]", need)[0])
    return wheels


def test_only_one_extra_brings_each_onnxruntime() -> None:
    """No two extras that belong together bring two wheels; nothing but dev repeats runtime."""
    brought = {extra: onnxruntimes_of(extra) for extra in project_extras()}
    assert {extra: wheels for extra, wheels in brought.items() if wheels} == {
        "runtime": {"onnxruntime"},
        "runtime-gpu": {"onnxruntime-gpu"},
        "dev": {"onnxruntime"},
    }
    plain, gpu = project_extras()["runtime"], project_extras()["runtime-gpu"]
    assert plain[1:] == gpu[1:], "the same but for ONNX Runtime"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the only distributions that are installed."""

    def install_only(*names: str) -> None:
        for name in names:
            folder = tmp_path / f"{name.replace('-', '_')}-1.22.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.22.0\n"
            )
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return install_only


def test_a_second_onnxruntime_is_never_suggested(wheels: Callable[..., None]) -> None:
    wheels("onnxruntime-gpu")
    assert onnxruntime_wheels() == ["onnxruntime-gpu"]
    assert "[runtime-gpu]" in str(missing("tokenizers"))
    assert "[twin]" in str(missing("mujoco"))


def test_both_wheels_are_taken_out_before_one_is_installed(wheels: Callable[..., None]) -> None:
    wheels("onnxruntime", "onnxruntime-gpu")
    out = "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install"
    assert reinstall_onnxruntime(gpu=True) == f'{out} "./mtdit[runtime-gpu]"'
    assert reinstall_onnxruntime(gpu=False) == f'{out} "./mtdit[runtime]"'
