"""The one error that ends a program with its message alone."""


class RefusedError(ValueError):
    """A run that cannot begin; nothing of an earlier one has been touched."""
