"""The errors that end a program with their message alone."""


class RefusedError(ValueError):
    """A run that cannot begin; nothing of an earlier one has been touched."""


class StoppedError(RuntimeError):
    """A run that cannot go on; what it has recorded is kept."""
