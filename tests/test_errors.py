"""The page of errors shows what the package says, word for word."""

import pytest

from tests.errors import CALLS, COMMANDS, PAGE, entries, message_of

SHOWN = entries(PAGE.read_text())
TYPED = [x for calls in (*CALLS.values(), *COMMANDS.values()) for x in calls]


def test_the_page_has_what_is_tried_and_nothing_else():
    assert list(SHOWN) == TYPED
    assert len(TYPED) >= 60


@pytest.mark.parametrize("typed", TYPED)
def test_the_page_shows_what_is_said(typed):
    message = "\n".join(
        line.rstrip() for line in message_of(typed).rstrip().splitlines()
    )
    assert SHOWN[typed] == message, "python tools/errors.py writes it anew"
