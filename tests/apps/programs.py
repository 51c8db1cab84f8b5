"""Runs the training programs in this process: TensorFlow loads for seconds."""

import contextlib
import io
import logging

from absl import flags


def parsed(program, *arguments):
    """Returns the words beside the flags, and the flags.

    Raises:
        flags.Error: Where `app.run` would print its message and exit.
    """
    values = flags.FlagValues()
    program.define(values)
    return values([program.__name__, *arguments]), values


def run(program, *arguments):
    """Runs a program to its end and returns what it printed."""
    argv, values = parsed(program, *arguments)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _own_logger():
        program.main(argv, values)
    return printed.getvalue()


@contextlib.contextmanager
def _own_logger():
    """Takes back what a program changes for the rest of its process."""
    logger = logging.getLogger("keras_prunetrain")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def files(folder):
    """Returns the contents of all files in a folder, by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
