"""One finding of the doctor: what was looked at, how it is, and what to do about it. Knows nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """One line of the table. `remedy` is empty when there is nothing to do."""

    id: str
    status: str  # ok | warn | fail
    finding: str
    remedy: str = ""


def judged(name: str, bad: bool, finding: str, remedy: str, status: str = WARN) -> Check:
    """`status` and the remedy when `bad`, else OK without one."""
    return Check(name, status, finding, remedy) if bad else Check(name, OK, finding)


def healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing that the asked robot needs is broken."""
    return all(check.status != FAIL for check in checks)


def to_dict(checks: Sequence[Check]) -> dict[str, Any]:
    return {"healthy": healthy(checks), "checks": [asdict(check) for check in checks]}
