"""The command that installs an extra is one that works for this installation."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mtdit_robots.errors import UserError
from mtdit_robots.extras import EXTRAS, extra_of, install, missing, require


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
    assert install("gpu", "--force-reinstall") == 'pip install --force-reinstall "./mtdit[gpu]"'


def test_a_missing_module_is_named_with_its_extra() -> None:
    assert str(missing("av")) == f"av is not installed: {install('record')}"
    said = str(missing("cv2", "cameras need OpenCV"))
    assert said == f"cameras need OpenCV, which is not installed: {install('runtime')}"
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
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert set(EXTRAS) <= set(re.findall(r"^(\S+) = \[", table, re.MULTILINE))
