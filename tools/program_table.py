"""Writes the section on programs of docs/coverage.md.

    python tools/program_table.py

The programs are those of `tests/programs/`, whose tests compare each line.
"""

import pathlib
import sys

import keras

# `tests` is not part of the installed package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.programs.table import section  # noqa: E402


def main():
    keras.config.set_floatx("float64")
    page = ROOT / "docs" / "coverage.md"
    models, _, _ = page.read_text().partition("\n## Programs\n")
    page.write_text(models + section())


if __name__ == "__main__":
    main()
