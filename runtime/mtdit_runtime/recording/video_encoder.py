"""Encodes one camera's frames of one episode, as MP4 or PNG, in a thread beside the control loop.

When the encoder falls behind, the frame before is repeated, so that frame i stays frame i; these
frames are counted and reported. PyAV is imported where it is used.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_robots.robot import Frame
from mtdit_runtime.recording.dataset_stats import Counts, pixel_counts

WAITING = 90  # most frames in the queue: three seconds, 80 MB of a 640x480 camera


@dataclass(frozen=True)
class Codec:
    """An FFmpeg encoder and its settings.

    A key frame every second frame keeps LeRobot's random access fast.
    """

    name: str  # the codec name in the stream
    encoder: str
    crf: int
    preset: str
    g: int = 2

    @property
    def options(self) -> dict[str, str]:
        # bf 0: no frame is reordered, so pts starts at 0
        return {"g": str(self.g), "crf": str(self.crf), "preset": self.preset, "bf": "0"}


# H.264 takes a third of the time of AV1 and leaves CPU to the control loop; LeRobot uses AV1.
CODECS = {
    "h264": Codec("h264", "libx264", 21, "veryfast"),
    "av1": Codec("av1", "libsvtav1", 30, "12"),
}


class Sink(Protocol):
    """Takes frames, (H, W, 3) uint8 RGB, one after the other."""

    def write(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


class VideoSink:
    """An MP4 file, yuv420p, frame i at i / fps seconds."""

    def __init__(self, path: Path, fps: int, height: int, width: int, codec: Codec) -> None:
        import av
        import av.logging

        av.logging.set_libav_level(av.logging.ERROR)
        self._av, self._rate, self._n_frames = av, Fraction(1, fps), 0
        self._shape = height, width, 3
        self._file = av.open(str(path), "w", format="mp4")
        stream: Any = self._file.add_stream(codec.encoder, rate=fps, options=codec.options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # leaves cores to the loop and the other cameras
        self._stream = stream

    def write(self, frame: Frame) -> None:
        if frame.shape != self._shape:  # FFmpeg would scale it without a word
            raise ValueError(f"the video is {self._shape}, the frame {frame.shape}")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = self._n_frames, self._rate
        self._n_frames += 1
        self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        try:
            if self._n_frames:
                self._file.mux(self._stream.encode(None))
        finally:
            self._file.close()


class PngSink:
    """PNG bytes in memory, for datasets that store images in their tables."""

    def __init__(self, height: int, width: int) -> None:
        import av

        self._av, self.images = av, list[bytes]()
        self._size = width, height

    def write(self, frame: Frame) -> None:
        encoder: Any = self._av.CodecContext.create("png", "w")
        encoder.width, encoder.height = self._size
        encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 30)
        encoder.options = {"compression_level": "1"}
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = 0
        packets = [*encoder.encode(picture), *encoder.encode(None)]
        self.images.append(b"".join(bytes(packet) for packet in packets))

    def close(self) -> None:
        return None


@dataclass
class _Item:
    frame: Frame
    times: int = 1


@dataclass
class Encoding:
    """Encodes the frames of one camera: `add` each of them, then `finish` or `abandon`.

    open_sink: called in the encoder's thread, because opening takes longer than a tick. wait: when
    the encoder is slow, wait for it (lock-step) instead of repeating the frame before. waiting:
    size of the queue in frames. repeated: how many frames were replaced by the frame before.
    """

    open_sink: Callable[[], Sink]
    wait: bool = False
    waiting: int = WAITING
    repeated: int = 0
    counts: list[Counts] = field(default_factory=list)  # (3, 256) per frame
    sink: Sink | None = None
    _owed: int = 0  # frames that found the queue full: the frame before must be repeated for them
    _error: Exception | None = None

    def __post_init__(self) -> None:
        self._todo: queue.Queue[_Item | None] = queue.Queue(self.waiting)
        self._abandoned = threading.Event()
        self._last: Frame | None = None
        self._thread = threading.Thread(target=self._encode_all, name="encoder", daemon=True)
        self._thread.start()

    def add(self, frame: Frame) -> None:
        """Queue the next frame; does not wait unless `wait`. Raises what encoding raised."""
        if self._error is not None:
            raise self._error
        if self._owed and self._last is not None and not self._put(_Item(self._last, self._owed)):
            self._owe()
            return
        self._owed = 0
        if self._put(_Item(frame)):
            self._last = frame
        else:
            self._owe()

    def finish(self) -> None:
        """Encode the queued frames and close the file. Raises what encoding raised."""
        if self._owed and self._last is not None:
            self._todo.put(_Item(self._last, self._owed))
        self._todo.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Stop as soon as possible. The file is incomplete then."""
        self._abandoned.set()
        self._todo.put(None)
        self._thread.join()

    def _put(self, item: _Item) -> bool:
        try:
            self._todo.put(item, block=self.wait)
        except queue.Full:
            return False
        return True

    def _owe(self) -> None:
        self._owed += 1
        self.repeated += 1

    def _encode_all(self) -> None:
        while (item := self._todo.get()) is not None:
            if self._error is None and not self._abandoned.is_set():
                try:
                    self._encode(item)
                except Exception as error:  # raised by the next `add` or `finish`
                    self._error = error
        try:
            if self.sink is not None:
                self.sink.close()
        except Exception as error:
            self._error = self._error or error

    def _encode(self, item: _Item) -> None:
        self.sink = self.sink or self.open_sink()
        counts = pixel_counts(item.frame)
        for _ in range(item.times):
            self.sink.write(item.frame)
            self.counts.append(counts)


def find_codec(name: str, crf: int | None = None) -> Codec:
    """The codec called `name`, with another quality if `crf` is given.

    Raises UserError when it is unknown, or PyAV is missing or was built without its encoder.
    """
    if name not in CODECS:
        raise UserError(f"unknown codec {name!r}: use {' or '.join(CODECS)}")
    try:
        import av
    except ImportError as error:
        raise missing("av", "videos need PyAV") from error
    codec = CODECS[name]
    if codec.encoder not in av.codecs_available:
        others = " or ".join(other for other in CODECS if other != name)
        raise UserError(
            f"this PyAV cannot encode {name}: run `pip install --force-reinstall av`, or record "
            f"with the codec {others}"
        )
    return codec if crf is None else replace(codec, crf=crf)
