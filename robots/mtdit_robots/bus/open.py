"""Opens a servo bus by name: our own packets, or Feetech's SDK."""

from __future__ import annotations

from mtdit_robots.bus.feetech import Bus
from mtdit_robots.errors import UserError


def open_bus(
    kind: str, port: str, baud: int = 1_000_000, timeout_s: float = 0.05, retries: int = 2
) -> Bus:
    """Open a bus. kind: "own" for `Bus`, "sdk" for the one over feetech-servo-sdk.

    UserError for another kind, and for a port that does not open.
    """
    if kind == "own":
        return Bus(port, baud, timeout_s, retries)
    if kind == "sdk":
        from mtdit_robots.bus.sdk import SdkBus

        return SdkBus(port, baud, timeout_s, retries)
    raise UserError(f"there is no bus {kind!r}: use own or sdk")
