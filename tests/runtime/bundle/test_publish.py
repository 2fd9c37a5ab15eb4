"""A new bundle takes its place as a whole; nothing that is not a bundle gives way to it, and
nothing is left behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from full_disk import disk

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import ENGINES, MANIFEST
from mtdit_runtime.bundle.publish import new_bundle


def publish(folder: Path, content: str = "new") -> list[str]:
    told: list[str] = []
    with new_bundle(folder, told.append) as scratch:
        (scratch / MANIFEST).write_text(content)
    return told


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    def export() -> None:
        with new_bundle(tmp_path / "x.mtdit") as scratch:
            (scratch / "denoiser.onnx").write_bytes(b"half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_is_replaced_only_by_a_finished_one(copy: Path) -> None:
    with pytest.raises(RuntimeError), new_bundle(copy):
        raise RuntimeError
    open_bundle(copy)
    assert publish(copy) == [f"replaced the previous bundle at {copy}"]
    assert [p.name for p in copy.iterdir()] == [MANIFEST]
    assert [p.name for p in copy.parent.iterdir()] == ["copy.mtdit"]


def test_a_first_bundle_replaces_nothing(tmp_path: Path) -> None:
    assert publish(tmp_path / "new/x.mtdit") == []
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.mtdit"]


def test_a_changed_bundle_may_be_replaced(copy: Path) -> None:
    (copy / "denoiser.onnx").write_bytes(b"tampered with")
    (copy / "text.onnx").unlink()
    assert publish(copy)[0].startswith("replaced the previous bundle at")
    assert [path.name for path in copy.iterdir()] == [MANIFEST]


def test_engines_are_kept(copy: Path) -> None:
    (copy / "engines/sm87").mkdir(parents=True)
    (copy / "engines/sm87/denoiser.plan").write_bytes(b"plan")
    (copy / "engines/timing-sm87.cache").write_bytes(b"times")
    told = publish(copy)
    assert told[1].startswith("kept its TensorRT engines")
    assert (copy / "engines/sm87/denoiser.plan").read_bytes() == b"plan"
    assert (copy / "engines/timing-sm87.cache").read_bytes() == b"times"


def test_a_link_to_an_older_bundle_stays_one(copy: Path) -> None:
    link = copy.with_name("link.mtdit")
    link.symlink_to(copy.name)
    publish(link)
    assert link.is_symlink()
    assert (copy / MANIFEST).read_text() == "new"
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy.mtdit", "link.mtdit"]


def test_an_older_bundle_comes_back_when_the_new_one_cannot_take_its_place(copy: Path) -> None:
    with pytest.raises(UserError, match="No such file"), new_bundle(copy) as scratch:
        shutil.rmtree(scratch)
    open_bundle(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["copy.mtdit"]


@pytest.mark.parametrize("name", ["thesis.tex", "golden/notes.txt", "engines2", ".git"])
def test_a_bundle_with_something_else_in_it_is_never_replaced(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).mkdir() if "." not in name[1:] else (copy / name).write_text("precious")
    other = "golden" if name.startswith("golden") else name
    with pytest.raises(
        UserError, match=f"holds {other}, which is not part of the bundle: move it away"
    ):
        publish(copy)
    assert (copy / name).exists()


def test_what_comes_into_the_old_bundle_meanwhile_is_not_lost(copy: Path) -> None:
    with pytest.raises(UserError, match=r"holds late\.txt"), new_bundle(copy):
        (copy / "late.txt").write_text("precious")
    assert (copy / "late.txt").exists()


@pytest.mark.parametrize(
    "manifest", [None, "{}", '{"name": "a web page"}', "[]", "{", '{"schema_version": 2}']
)
def test_another_folder_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "precious.txt").write_text("x")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(UserError, match="is not a bundle"):
        publish(tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_the_folder_one_is_in_is_not_replaced(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match="contains the current directory: leave it first"):
        publish(Path())
    open_bundle(copy)


@pytest.mark.parametrize("name", ["a\udcffb.mtdit", "a\0b"])
def test_names_that_no_bundle_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="choose another folder"):
        publish(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def file_for_a_folder(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file/x.mtdit"


def link_to_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


@pytest.mark.parametrize(
    "place",
    [
        file_for_a_folder,
        lambda folder: file_for_a_folder(folder) / "deeper" / "y.mtdit",
        link_to_itself,
        lambda folder: folder / ("x" * 300),
        lambda folder: Path("/proc/x.mtdit"),
        lambda folder: Path("/"),
    ],
)
def test_places_that_take_no_bundle(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="choose another folder") as refusal:
        publish(place(tmp_path))
    assert ".part" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_names_the_place(tmp_path: Path) -> None:
    with disk(100) as fill:
        fill()
        with pytest.raises(
            UserError, match=r"^/.*/x\.mtdit cannot be written \(File too large\): choose"
        ):
            publish(tmp_path / "x.mtdit", "x" * 1000)
    assert list(tmp_path.iterdir()) == []


def test_what_is_unreadable_elsewhere_is_not_blamed_on_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights"), new_bundle(tmp_path / "x.mtdit"):
        (tmp_path / "weights").read_bytes()


def test_messages_name_the_place_and_not_the_scratch_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal, new_bundle(tmp_path / "x.mtdit") as scratch:
        open_bundle(scratch)
    assert str(refusal.value).startswith(f"{tmp_path}/x.mtdit is not a bundle")


def test_one_export_at_a_time(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "x.mtdit") as scratch:
        (scratch / MANIFEST).write_text("the first one's")
        with pytest.raises(UserError, match=r"another export is writing .*: wait until it ends"):
            publish(tmp_path / "x.mtdit")
        publish(tmp_path / "y.mtdit")
    assert (tmp_path / "x.mtdit" / MANIFEST).read_text() == "the first one's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.mtdit", "y.mtdit"]


def test_many_exports_at_once(tmp_path: Path) -> None:
    """Whatever moment they meet in, each ends well or in one line, and a whole bundle is there in
    the end.
    """
    code = f"""
import json, time
from pathlib import Path
from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.publish import new_bundle
for i in range(200):
    try:
        with new_bundle(Path({str(tmp_path / "x.mtdit")!r})) as scratch:
            (scratch / "manifest.json").write_text(json.dumps(dict(schema_version=2, files={{}})))
    except UserError as error:
        assert "another export" in str(error), error
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)
    ]
    for one in running:
        assert one.communicate(timeout=60)[1] == b""
    assert [path.name for path in tmp_path.iterdir()] == ["x.mtdit"]


@pytest.mark.parametrize("moved", [False, True], ids=["while writing", "while taking the place"])
def test_what_a_killed_export_left_is_put_in_order(copy: Path, moved: bool) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from mtdit_runtime.bundle.publish import new_bundle
with new_bundle(Path({str(copy)!r})) as scratch:
    (scratch / "denoiser.onnx").write_bytes(b"half")
    if {moved}:
        Path({str(copy)!r}).rename(scratch.with_name("old"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(copy.parent)) == (1 if moved else 2)

    def looked_in() -> None:
        with new_bundle(copy) as scratch:
            raise RuntimeError(str(list(scratch.iterdir())))

    with pytest.raises(RuntimeError, match=r"^\[\]$"):
        looked_in()
    open_bundle(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["copy.mtdit"]


def test_engines_of_a_replaced_bundle_outlive_a_kill(copy: Path) -> None:
    """Between the two last renames: the new bundle is there, the engines still with the old one."""
    left = copy.with_name(f".{copy.name}.part") / "old"
    shutil.copytree(copy, left)
    (left / ENGINES / "sm87").mkdir(parents=True)
    with pytest.raises(RuntimeError), new_bundle(copy):
        raise RuntimeError
    assert (copy / ENGINES / "sm87").is_dir()


def test_a_place_inside_a_bundle_takes_none(copy: Path) -> None:
    with pytest.raises(UserError, match=r"sub\.mtdit is inside the bundle .*copy\.mtdit"):
        publish(copy / "sub.mtdit")


def test_folders_made_for_an_export_that_failed_go_with_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "a/b/c.mtdit"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
