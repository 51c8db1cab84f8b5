"""What the command lines of all programs share: numbers, folders, no words."""

import math
import os
import sys

from absl import app, flags


def refuse_words(argv):
    """Ends the program if there are words beside the flags."""
    words = argv[1:]
    if words:
        sys.exit(
            f"Words beside the flags: {' '.join(words)}. Every setting is a "
            "flag; --helpshort lists them."
        )


def run(main, values):
    """Runs a program whose flags are no global ones; `--help` lists them.

    Args:
        main: Function of the words of the command line, which parses `values`.
        values: The `FlagValues` of the program.
    """
    for name in values:
        flags.FLAGS[name] = values[name]
        flags.FLAGS.register_flag_by_module(sys.argv[0], values[name])
    app.run(main)


def integer(name, default, least, most, text, flag_values):
    """Defines a flag for an integer from `least` to `most`."""
    parser = _NumberParser(
        int,
        f"a whole number from {least:,} to {most:,}",
        lambda value: least <= value <= most,
    )
    _define(parser, name, default, text, flag_values)


def real(name, default, text, words, fits, flag_values):
    """Defines a flag for a number that `fits`, which `words` describe."""
    _define(_NumberParser(float, words, fits), name, default, text, flag_values)


def _define(parser, name, default, text, flag_values):
    serializer = flags.ArgumentSerializer()
    flags.DEFINE(
        *(parser, name, default, text),
        flag_values=flag_values,
        serializer=serializer,
    )


class _NumberParser(flags.ArgumentParser):
    """Takes numbers of a range; whatever is wrong, says what is right."""

    def __init__(self, kind, words, fits):
        self.syntactic_help = words
        self._kind = kind
        self._fits = fits

    def parse(self, argument):
        try:
            value = self._kind(argument)
        except (ValueError, TypeError):
            value = math.nan
        if not self._fits(value):  # A NaN fits nowhere.
            raise ValueError(f"must be {self.syntactic_help}.")
        return value

    def flag_type(self):
        return self._kind.__name__


def folder(path):
    """Returns the path of a folder as it was meant; `None` stays `None`."""
    # A shell leaves "~" behind "=" as it is.
    return path and os.path.expanduser(path)


def may_be_written(path):
    """Whether `path` is a folder that may be written, or may become one."""
    if not path:
        return False
    place = os.path.abspath(folder(path))
    while not os.path.lexists(place):  # Nor where one may not look.
        place = os.path.dirname(place)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
