"""Capture from a virtual camera, which answers V4L2's requests; and from films."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from virtual_camera import HEIGHT, WIDTH, VirtualCamera, jpeg, red

from mtdit_robots.cameras import v4l2
from mtdit_robots.cameras.camera import V4l2Camera
from mtdit_robots.cameras.film_camera import FilmCamera
from mtdit_robots.cameras.open import open_camera, turned
from mtdit_robots.cameras.options import ROTATIONS, CameraOptions
from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_runtime.recording.video_encoder import CODECS, VideoSink


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 60 s")


def opened(device: VirtualCamera, **more: object) -> V4l2Camera:
    return V4l2Camera("top", 2, HEIGHT, WIDTH, first_frame_s=30, kernel=device, **more)  # type: ignore[arg-type]


def test_the_latest_frame_in_rgb_grows_old_when_frames_stop() -> None:
    device, begun_s = VirtualCamera(), time.monotonic()
    with opened(device, fps=15) as camera:
        frame, age_s = camera.read()
        assert (camera.name, frame.shape, frame.dtype) == ("top", (HEIGHT, WIDTH, 3), np.uint8)
        assert (camera.pixel_format, device.rate_hz) == ("MJPG", 15)
        assert frame[..., 0].min() > 240
        assert frame[..., 1:].max() < 15
        assert 0 <= age_s <= time.monotonic() - begun_s
        device.hangs.set()
        wait_for(lambda: camera.read()[1] > 0.5)
        last, age_s = camera.read()
        time.sleep(0.05)
        again, later_s = camera.read()
        assert again is last
        assert later_s >= age_s + 0.05
    camera.close()
    assert device.open_now == 0


def test_pixels_are_those_of_opencv() -> None:
    """LeRobot records with OpenCV."""
    rng = np.random.default_rng(5)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 2)
    data = jpeg(smooth)
    with opened(VirtualCamera(lambda _: data)) as camera:
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(camera.read()[0], theirs[..., ::-1])
    packed = rng.integers(0, 256, (HEIGHT, WIDTH, 2), np.uint8)
    raw = VirtualCamera(lambda _: packed.tobytes(), formats=("YUYV",))
    with opened(raw) as camera:
        assert camera.pixel_format == "YUYV"
        theirs = cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_YUYV)
        np.testing.assert_array_equal(camera.read()[0], theirs)


def test_damaged_frames_are_left_out() -> None:
    """One is flagged by the driver, one ends in the middle, one is no JPEG at all."""
    whole = jpeg(red())
    contents = {3: whole[: len(whole) // 2], 4: b"nothing", 5: b""}
    device = VirtualCamera(lambda n: contents.get(n, whole), damaged=(2,))
    with opened(device) as camera:
        wait_for(lambda: device.sent > 9)
        wait_for(lambda: camera.arrived >= 6)
        assert device.sent - camera.arrived in (4, 5), "the last one may be on its way"
        assert (camera.reopened, camera.read()[0][..., 0].min()) == (0, 254)


def test_a_camera_that_was_unplugged_comes_back() -> None:
    device = VirtualCamera()
    camera = opened(device)
    camera.read()
    device.gone.set()
    wait_for(lambda: camera.read()[1] > 0.7)
    before = camera.arrived
    device.gone.clear()
    wait_for(lambda: camera.arrived > before + 3)
    assert (camera.reopened, device.open_now) == (1, 1)
    assert camera.read()[1] < 30
    device.gone.set()
    wait_for(lambda: device.open_now == 0)
    camera.close()
    assert device.open_now == 0, "closed once"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Half a second at 20 Hz, every frame brighter than the one before."""
    path = tmp_path / "clip.mp4"
    sink = VideoSink(path, 20, HEIGHT, WIDTH, CODECS["h264"])
    for i in range(10):
        sink.write(np.full((HEIGHT, WIDTH, 3), 40 + 20 * i, np.uint8))
    sink.close()
    return path


def test_a_film_runs_at_its_own_rate_and_starts_again(film: Path) -> None:
    camera = open_camera("top", f"file:{film}", HEIGHT, WIDTH)
    seen = []
    began_s = time.monotonic()
    while camera.arrived < 25:
        frame, age_s = camera.read()
        assert 0 <= age_s <= 1.0
        seen.append(int(frame.mean()))
        time.sleep(0.01)
    assert time.monotonic() - began_s > 1.0, "25 frames at 20 Hz"
    assert (min(seen), max(seen)) == (pytest.approx(40, abs=4), pytest.approx(220, abs=4))
    drops = sum(later < sooner for sooner, later in pairwise(seen))
    assert drops == 2, "over and over again"
    camera.close()


def test_a_film_nobody_looked_at_goes_on_where_it_stopped(film: Path) -> None:
    camera = FilmCamera("top", [film], HEIGHT, WIDTH)
    camera.read()
    camera._shown_s -= 3600  # an hour without a look
    camera.read()
    assert camera.arrived <= 22
    camera.close()


def test_a_datasets_camera(film: Path, tmp_path: Path) -> None:
    place = tmp_path / "set/videos/observation.images.top/chunk-000/file-000.mp4"
    place.parent.mkdir(parents=True)
    film.rename(place)
    camera = open_camera("front", f"dataset:{tmp_path / 'set'}:top", HEIGHT, WIDTH)
    assert (camera.name, camera.read()[0].shape) == ("front", (HEIGHT, WIDTH, 3))
    camera.close()
    with pytest.raises(UserError, match="has no videos of a camera 'wrist': its cameras are: top"):
        open_camera("front", f"dataset:{tmp_path / 'set'}:wrist", HEIGHT, WIDTH)
    with pytest.raises(UserError, match="write dataset:FOLDER:camera"):
        open_camera("front", "dataset:nothing", HEIGHT, WIDTH)


def test_a_film_that_is_none(film: Path, tmp_path: Path) -> None:
    size = f"{WIDTH}x{HEIGHT}"
    with pytest.raises(UserError, match=f"is {size}, not 640x480: ask for {size}"):
        open_camera("top", f"file:{film}")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(UserError, match=r"text\.mp4 is not a video"):
        open_camera("top", f"file:{tmp_path / 'text.mp4'}")
    with pytest.raises(UserError, match="there is no file"):
        open_camera("top", "file:nowhere.mp4")


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_frames_are_turned_as_lerobot_turns_them(rotation: int, film: Path) -> None:
    """LeRobot maps its Cv2Rotation to cv2.rotate, and asks a device for the size before it."""
    from lerobot.cameras.configs import Cv2Rotation
    from lerobot.cameras.utils import get_cv2_rotation

    frame = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    code = get_cv2_rotation(Cv2Rotation(rotation))
    expected = frame if code is None else cv2.rotate(frame, code)
    assert np.array_equal(turned(frame, rotation), expected)
    size = expected.shape[:2]
    with open_camera("top", CameraOptions(f"file:{film}", rotation=rotation), *size) as camera:
        assert (camera.height, camera.width) == size
        first, _ = camera.read()
        assert first.shape == expected.shape
        assert first.flags["C_CONTIGUOUS"]
        assert camera.arrived == 1


def test_the_options_of_a_camera_are_lerobots() -> None:
    from lerobot.cameras.opencv import OpenCVCameraConfig

    theirs = {field.name for field in dataclasses.fields(OpenCVCameraConfig)}
    ours = {field.name for field in dataclasses.fields(CameraOptions)} - {"source"}
    assert theirs - ours == {"index_or_path", "color_mode", "backend"}
    assert ours <= theirs


def test_the_options_go_before_the_arguments(film: Path) -> None:
    with open_camera("top", CameraOptions(f"file:{film}", WIDTH, HEIGHT), 480, 640) as camera:
        assert (camera.height, camera.width) == (HEIGHT, WIDTH)


def test_cameras_warm_up_together_before_their_first_frame(film: Path) -> None:
    options = CameraOptions(f"file:{film}", WIDTH, HEIGHT, warmup_s=0.6)
    began_s = time.monotonic()
    with open_camera("top", options) as top, open_camera("wrist", options) as wrist:
        assert time.monotonic() - began_s < 0.5, "opening does not wait"
        top.read()
        warm_s = time.monotonic() - began_s
        assert warm_s >= 0.6
        wrist.read()
        wrist.read()
        assert time.monotonic() - began_s - warm_s < 0.5


def test_another_size_or_format_is_refused() -> None:
    device = VirtualCamera()
    with pytest.raises(
        UserError, match=rf"camera 'top' .* delivers {WIDTH}x{HEIGHT}, not 640x480: choose a size"
    ):
        V4l2Camera("top", "/dev/video2", kernel=device)
    with pytest.raises(UserError, match=r"delivers H264, not MJPG or JPEG or YUYV: choose a"):
        opened(VirtualCamera(formats=("H264",)))
    with opened(device, fourcc="YUYV") as camera:
        assert camera.pixel_format == "YUYV"
    with pytest.raises(UserError, match="delivers MJPG, not YUYV: choose a fourcc it offers"):
        opened(VirtualCamera(formats=("MJPG",)), fourcc="YUYV")
    with pytest.raises(UserError, match="mtdit reads MJPG, JPEG, YUYV, not fourcc 'H264'"):
        opened(device, fourcc="H264")
    with pytest.raises(UserError, match=r"\(/dev/video2\) another program uses it"):
        opened(VirtualCamera(busy=True))
    assert device.open_now == 0


@pytest.mark.parametrize("device", [63, "/dev/video63", "nothing.avi"])
def test_a_camera_that_is_not_there(device: int | str) -> None:
    with pytest.raises(
        UserError,
        match=r"cannot open camera 'wrist' \(.*\): No such file .* that `mtdit find-cameras` lists",
    ):
        V4l2Camera("wrist", device)


def test_a_file_that_is_no_camera(tmp_path: Path) -> None:
    (tmp_path / "clip.avi").write_bytes(b"")
    with pytest.raises(UserError, match="does not start"):
        V4l2Camera("wrist", str(tmp_path / "clip.avi"))


def test_devices_and_their_modes(tmp_path: Path) -> None:
    (tmp_path / "video2").write_text("")
    device = VirtualCamera()
    [found] = v4l2.find_devices(tmp_path, device)
    assert (found.card, found.bus, found.problem) == ("Virtual", "usb-1", "")
    assert found.modes == tuple(
        v4l2.Mode(name, HEIGHT, WIDTH, (30.0, 15.0)) for name in ("MJPG", "YUYV")
    )
    assert v4l2.why_no_stream(found.path, device) == ""
    assert "another program" in v4l2.why_no_stream(found.path, VirtualCamera(busy=True))
    assert device.open_now == 0


def test_without_pillow_the_install_line_is_given() -> None:
    program = """
import sys
sys.modules["PIL"] = None  # as if it were not installed
from mtdit_robots.cameras.camera import V4l2Camera
from mtdit_robots.errors import UserError
try:
    V4l2Camera("top", 0)
except UserError as error:
    print(error)
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output == f"cameras need Pillow, which is not installed: {install('runtime')}\n"
