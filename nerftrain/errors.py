"""The one exception for what a user can mend. Free of torch, so that the command line starts at once."""


class UserError(Exception):
    """A mistake in the user's input: the text is one line and holds the remedy (exit status 2)."""


class RunError(Exception):
    """A run that cannot go on through no mistake in its input: the text is one line (exit status 1)."""
