"""The one error that is not the user's: what was exported is not what was trained."""

from __future__ import annotations


class ExportError(Exception):
    """A check of the exported graphs failed, so no bundle was written. The CLI prints it and exits
    with code 1.
    """
