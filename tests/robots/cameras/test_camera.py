"""Capture from a real stream: a little MJPEG server takes the place of the device."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from mtdit_robots.cameras.camera import OpenCvCamera
from mtdit_robots.cameras.film_camera import FilmCamera
from mtdit_robots.cameras.open import open_camera, turned
from mtdit_robots.cameras.options import ROTATIONS, CameraOptions
from mtdit_robots.errors import UserError
from mtdit_robots.extras import install
from mtdit_runtime.recording.video_encoder import CODECS, VideoSink

HEIGHT, WIDTH = 48, 64


class Stream(ThreadingHTTPServer):
    """Serves an endless MJPEG stream of red frames until `stop` is set; `hangs` keeps it open
    without frames.
    """

    daemon_threads = True

    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Frames)
        self.stop, self.hangs = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/stream.mjpg"


class _Frames(BaseHTTPRequestHandler):
    server: Stream

    def do_GET(self) -> None:
        red = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        red[..., 2] = 255  # BGR
        jpeg = cv2.imencode(".jpg", red)[1].tobytes()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        while not self.server.stop.wait(0.01):
            if self.server.hangs.is_set():
                continue
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")

    def log_message(self, *_: object) -> None:
        return


@contextlib.contextmanager
def served(port: int = 0) -> Iterator[Stream]:
    server = Stream(port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    with served() as server:
        yield server


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 60 s")


def test_the_latest_frame_in_rgb_grows_old_when_the_stream_ends(stream: Stream) -> None:
    begun_s = time.monotonic()
    with OpenCvCamera("top", stream.url, HEIGHT, WIDTH, first_frame_s=30) as camera:
        frame, age_s = camera.read()
        assert (camera.name, frame.shape, frame.dtype) == ("top", (HEIGHT, WIDTH, 3), np.uint8)
        assert frame[..., 0].min() > 240
        assert frame[..., 1:].max() < 15
        assert 0 <= age_s <= time.monotonic() - begun_s
        stream.stop.set()
        wait_for(lambda: camera.read()[1] > 1.0)
        last, age_s = camera.read()
        time.sleep(0.05)
        again, later_s = camera.read()
        assert again is last
        assert later_s >= age_s + 0.05
    camera.close()


def test_a_camera_that_was_unplugged_comes_back() -> None:
    with served() as first:
        camera = OpenCvCamera("top", first.url, HEIGHT, WIDTH, first_frame_s=30)
        camera.read()
    wait_for(lambda: camera.read()[1] > 1.0)
    before = camera.arrived
    with served(first.server_port):
        wait_for(lambda: camera.arrived > before + 3)
        assert camera.reopened == 1
        assert camera.read()[1] < 30
        camera.close()


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


def test_the_pixel_format_that_was_asked_for_or_none(stream: Stream) -> None:
    options = CameraOptions(stream.url, WIDTH, HEIGHT, fourcc="MJPG")
    with open_camera("top", options) as camera:
        assert camera.pixel_format == "MJPG"
    with pytest.raises(UserError, match=r"delivers MJPG, not YUYV: choose a fourcc it offers"):
        open_camera("top", dataclasses.replace(options, fourcc="YUYV"))


def test_closing_does_not_wait_for_a_device_that_hangs(stream: Stream) -> None:
    camera = OpenCvCamera("top", stream.url, HEIGHT, WIDTH, first_frame_s=30)
    camera.read()
    stream.hangs.set()
    time.sleep(0.5)  # what was under way arrives
    camera.close()
    assert camera._thread.is_alive()
    stream.stop.set()
    camera._thread.join(60)
    camera.close()


def test_another_size_is_refused(stream: Stream) -> None:
    with pytest.raises(
        UserError, match=f"camera 'top' .* delivers {WIDTH}x{HEIGHT}, not 640x480: choose a size"
    ):
        OpenCvCamera("top", stream.url)


@pytest.mark.parametrize("device", [63, "/dev/video63", "nothing.avi"])
def test_a_camera_that_is_not_there(device: int | str) -> None:
    with pytest.raises(
        UserError,
        match=r"cannot open camera 'wrist' \(.*\): choose one that `mtdit find-cameras` lists",
    ):
        OpenCvCamera("wrist", device)


def test_without_opencv_the_install_line_is_given() -> None:
    program = """
import sys
sys.modules["cv2"] = None  # as if it were not installed
from mtdit_robots.cameras.camera import OpenCvCamera
from mtdit_robots.errors import UserError
try:
    OpenCvCamera("top", 0)
except UserError as error:
    print(error)
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output == f"cameras need OpenCV, which is not installed: {install('runtime')}\n"
