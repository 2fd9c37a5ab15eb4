"""The one exception whose message is meant for the user."""

from __future__ import annotations


class UserError(Exception):
    """A problem the user can fix. The message is one line that says what is wrong and what to do
    about it; the CLI prints it and exits with code 2.
    """
