"""The error for an export that does not compute what was trained. It is not the user's mistake."""

from __future__ import annotations


class ExportError(Exception):
    """A check of the exported graphs or engines failed, so they were not kept. The CLI prints the
    message and exits with code 1.
    """
