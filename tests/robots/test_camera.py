"""Capture from a real stream: a little MJPEG server takes the place of the device."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from mtdit_robots.camera import OpenCvCamera
from mtdit_robots.errors import UserError

HEIGHT, WIDTH = 48, 64


class Stream(ThreadingHTTPServer):
    """Serves an endless MJPEG stream of red frames until `stop` is set; `hangs` keeps it open without frames."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Frames)
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


@pytest.fixture
def stream() -> Iterator[Stream]:
    server = Stream()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_latest_frame_in_rgb_grows_old_when_the_stream_ends(stream: Stream) -> None:
    begun_s = time.monotonic()
    with OpenCvCamera("top", stream.url, HEIGHT, WIDTH, first_frame_s=30) as camera:
        frame, age_s = camera.read()
        assert (camera.name, frame.shape, frame.dtype) == ("top", (HEIGHT, WIDTH, 3), np.uint8)
        assert frame[..., 0].min() > 240
        assert frame[..., 1:].max() < 15
        assert 0 <= age_s <= time.monotonic() - begun_s
        stream.stop.set()
        camera._thread.join(60)
        last, age_s = camera.read()
        time.sleep(0.05)
        again, later_s = camera.read()
        assert again is last
        assert later_s >= age_s + 0.05
    camera.close()


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
    with pytest.raises(UserError, match=f"camera 'top' .* delivers {WIDTH}x{HEIGHT}, not 640x480: pick a size"):
        OpenCvCamera("top", stream.url)


@pytest.mark.parametrize("device", [63, "/dev/video63", "nothing.avi"])
def test_a_camera_that_is_not_there(device: int | str) -> None:
    with pytest.raises(UserError, match=r"cannot open camera 'wrist' \(.*\): pick one of `ls /dev/video\*`"):
        OpenCvCamera("wrist", device)


def test_without_opencv_the_install_line_is_given() -> None:
    program = """
import sys
sys.modules["cv2"] = None  # as if it were not installed
from mtdit_robots.camera import OpenCvCamera
from mtdit_robots.errors import UserError
try:
    OpenCvCamera("top", 0)
except UserError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == 'cameras need OpenCV: run `pip install "mtdit[runtime]"`\n'
