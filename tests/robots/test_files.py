"""What is written beside its place appears there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtdit_robots.files import new_file, new_folder


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("earlier")
    with new_file(path, sync) as part:
        part.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_earlier_file_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("earlier")
    with pytest.raises(FileNotFoundError), new_file(path) as part:
        part.with_name("nowhere").read_text()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_takes_the_place_of_the_earlier_one(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "deep/set"
    for content in ("earlier", "new"):
        with new_folder(path, sync) as part:
            (part / content).mkdir()
            (part / content / "file").write_text(content)
    assert [child.name for child in path.iterdir()] == ["new"]
    with pytest.raises(RuntimeError), new_folder(path):
        raise RuntimeError
    assert (path / "new/file").read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_earlier_folder_is_put_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "set", Path.rename
    (path / "earlier").mkdir(parents=True)

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".set.part":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt), new_folder(path) as part:
        (part / "new").mkdir()
    assert [child.name for child in path.iterdir()] == ["earlier"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_must_not_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    with new_folder(path, replace=False) as part:
        (part / "first").mkdir()
    with pytest.raises(OSError, match="not empty"), new_folder(path, replace=False) as part:
        (part / "second").mkdir()
    assert [child.name for child in path.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_program_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".set.part").mkdir()
    (tmp_path / ".set.part/half").write_text("")
    (tmp_path / ".set.earlier.part").mkdir()
    with new_folder(tmp_path / "set") as part:
        assert list(part.iterdir()) == []
    (tmp_path / ".link.part").symlink_to("nowhere")
    with new_file(tmp_path / "link") as part:
        part.symlink_to("set")
    assert (tmp_path / "link").resolve() == tmp_path / "set"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "set"]
