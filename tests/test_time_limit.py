"""The limit on the time in which tests begin, in a run of its own."""

import pathlib
import subprocess
import sys

import pytest

CONFTEST = pathlib.Path(__file__).with_name("conftest.py")
TESTS = (
    "import time\ndef test_a():\n    time.sleep(6)\ndef test_b():\n    pass\n"
)

# What prepares TensorFlow, which may take longer than the limit.
PREPARING = ("def pytest_pycollect_makemodule", "autouse=True")


@pytest.mark.parametrize(
    ("seconds", "passed", "skipped"), [("0", 0, 2), ("5", 1, 1), ("600", 2, 0)]
)
def test_tests_that_would_begin_later_are_skipped_by_name(
    seconds, passed, skipped, tmp_path
):
    hooks = CONFTEST.read_text()
    assert all(x in hooks for x in PREPARING)
    hooks = hooks.replace(PREPARING[0], "def _unused")
    hooks = hooks.replace(PREPARING[1], "autouse=False")
    (tmp_path / "conftest.py").write_text(hooks)
    (tmp_path / "test_two.py").write_text(TESTS)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", f"--seconds={seconds}", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    assert found.count("seconds of --seconds are over.") == skipped
    named = [name for name in ("test_a", "test_b") if f"::{name}: " in found]
    assert named == ["test_a", "test_b"][2 - skipped :]
    assert (f"{passed} passed" in found) == bool(passed)
