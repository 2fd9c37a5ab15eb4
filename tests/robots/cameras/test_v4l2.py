"""What can be checked of V4L2 without a camera: the structures' layout, names, and errors in
words.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mtdit_robots.cameras import v4l2, v4l2_stream


@pytest.mark.parametrize(
    ("request_", "number", "direction"),
    [
        (v4l2._QUERYCAP, 0, 2),
        (v4l2._ENUM_FMT, 2, 3),
        (v4l2.REQBUFS, 8, 3),
        (v4l2._ENUM_FRAMESIZES, 74, 3),
        (v4l2._ENUM_FRAMEINTERVALS, 75, 3),
        (v4l2_stream._S_FMT, 5, 3),
        (v4l2_stream._S_PARM, 22, 3),
        (v4l2_stream._QUERYBUF, 9, 3),
        (v4l2_stream._QBUF, 15, 3),
        (v4l2_stream._DQBUF, 17, 3),
    ],
)
def test_request_codes_carry_direction_size_and_number(
    request_: tuple[int, object], number: int, direction: int
) -> None:
    """linux/ioctl.h: direction << 30 | size << 16 | type << 8 | number, and the size is the
    structure's.
    """
    code, layout = request_
    assert code == direction << 30 | layout.size << 16 | ord("V") << 8 | number  # type: ignore[attr-defined]


def test_stream_codes() -> None:
    assert 1 << 30 | 4 << 16 | ord("V") << 8 | 18 == v4l2.STREAMON
    assert v4l2.STREAMOFF == v4l2.STREAMON + 1


def test_no_space_left_is_usb_bandwidth() -> None:
    assert "USB bus has no bandwidth left" in v4l2.explain(
        OSError(errno.ENOSPC, "No space left on device")
    )
    assert "another program" in v4l2.explain(OSError(errno.EBUSY, "Device or resource busy"))
    assert "plug it in again" in v4l2.explain(OSError(errno.EIO, "Input/output error"))


def test_pixel_formats_by_their_letters() -> None:
    assert v4l2.letters(0x47504A4D) == "MJPG"
    assert v4l2.letters(int.from_bytes(b"Y16 ", "little")) == "Y16"


def test_devices_go_by_their_lasting_name(tmp_path: Path) -> None:
    """Files in the place of devices: the kernel refuses the questions, the names are found all the
    same.
    """
    (tmp_path / "v4l/by-id").mkdir(parents=True)
    for name in ("video2", "video10", "vbi0"):
        (tmp_path / name).write_text("")
    (tmp_path / "v4l/by-id/usb-Brand_Camera-video-index0").symlink_to(tmp_path / "video2")
    found = v4l2.find_devices(tmp_path)
    assert [Path(device.path).name for device in found] == [
        "usb-Brand_Camera-video-index0",
        "video10",
    ]
    assert [Path(device.node).name for device in found] == ["video2", "video10"]
    assert all(device.problem.startswith("is not a camera") for device in found)
    assert v4l2.find_devices(tmp_path / "nowhere") == []
    assert v4l2.why_no_stream(str(tmp_path / "video2")).startswith("does not start")
    assert (
        v4l2.why_no_stream(str(tmp_path / "video9"))
        == "cannot be opened (No such file or directory)"
    )
