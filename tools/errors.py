"""Writes docs/errors.md: what is said about wrong input.

python tools/errors.py
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# `tests` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tests.errors import PAGE, page  # noqa: E402


def main(words):
    if words:
        sys.exit(f"{__doc__}\nIt takes no arguments.")
    PAGE.write_text(page())
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main(sys.argv[1:])
