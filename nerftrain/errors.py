"""The exceptions whose text is for the user.

Free of torch, so that the command line starts at once.
"""


class UserError(Exception):
    """A mistake in the user's input: the text is one line and holds the remedy (exit status 2)."""


class RunError(Exception):
    """A run that its input is not to blame for and that cannot go on: one line (exit status 1)."""
