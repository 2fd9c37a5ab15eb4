"""One check of the doctor: what was checked, its status, the finding and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """One row of the table. `remedy` is empty when there is nothing to do."""

    id: str
    status: str  # ok | warn | fail
    finding: str
    remedy: str = ""


def judged(name: str, bad: bool, finding: str, remedy: str, status: str = WARN) -> Check:
    """A check with `status` and `remedy` if `bad`, else with status OK and no remedy."""
    return Check(name, status, finding, remedy) if bad else Check(name, OK, finding)


def healthy(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.status != FAIL for check in checks)


def to_dict(checks: Sequence[Check]) -> dict[str, Any]:
    return {"healthy": healthy(checks), "checks": [asdict(check) for check in checks]}
