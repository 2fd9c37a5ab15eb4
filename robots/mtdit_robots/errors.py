"""The one exception a user is meant to read.

Knows nothing about what went wrong; whoever raises it names the thing and the fix in one line.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. The message is one line and ends in what to do; the CLI prints
    it and exits 2.
    """
