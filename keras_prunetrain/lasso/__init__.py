"""The penalty that drives whole channels to zero."""
