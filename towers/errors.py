"""The one exception type that means "your input is wrong", as opposed to "this program is"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user: a file, a column, a value, an option.

    The message names the input and says what would be right. The command line prints it without a
    traceback and exits with status 2.
    """
