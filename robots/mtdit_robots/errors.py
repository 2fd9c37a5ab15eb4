"""The two errors that end a command in one line: the user's mistakes, and failed checks of an
export.
"""

from __future__ import annotations

from collections.abc import Mapping


class ExportError(Exception):
    """A check of the exported graphs or engines failed, so they were not kept. The CLI prints the
    message and exits with code 1.

    stages: stage -> figure -> value of the comparison that failed, which the CLI prints as a table.
    """

    def __init__(
        self, message: str, stages: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        super().__init__(message)
        self.stages = stages or {}


class UserError(Exception):
    """A problem the user can fix. The message is one line that says what is wrong and what to do
    about it; the CLI prints it and exits with code 2.
    """
