"""What a backend offers: the Engine protocol, and the engines of one bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A graph that can be called. Not re-entrant; the caller owns the returned arrays."""

    @property
    def name(self) -> str: ...

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Tensor name -> array, for the graph's inputs and outputs."""
        ...

    def describe(self) -> str:
        """One line for the user: backend, device, version."""
        ...


@dataclass(frozen=True)
class Engines:
    """The engines of a bundle. The text encoder is opened only for a task not seen in training."""

    vision: Engine | None  # None: the policy has no cameras
    history: Engine
    denoiser: Engine
    open_text: Callable[[], Engine]
    reason: str  # what was chosen and why, one line
    open_rtc: Callable[[], Engine] | None = None  # None: exported without --rtc
    half_sums: bool = False  # may also add up products of float16 in float16, as GPUs may

    @property
    def per_chunk(self) -> list[Engine]:
        return [*([self.vision] if self.vision else []), self.history, self.denoiser]
