"""What a training program tells in the terminal, beside the progress bar."""

import logging
import sys


def show_reconfigurations():
    """Prints what `keras_prunetrain` logs, a line for each reconfiguration."""
    handler = logging.StreamHandler(sys.stdout)
    # The progress bar has not ended its line yet.
    handler.setFormatter(logging.Formatter("\n%(message)s"))
    logger = logging.getLogger("keras_prunetrain")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
