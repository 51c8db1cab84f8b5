"""The search for cycles goes on, whatever ends the work without it."""

import contextlib
import gc
import sys

from keras_prunetrain import garbage
from keras_prunetrain.garbage import no_garbage_collection

MODULES = garbage.__file__, contextlib.__file__


class Interrupted(BaseException):
    pass


def work():
    with no_garbage_collection():
        return gc.isenabled()


def test_nothing_is_collected_meanwhile_and_all_is_as_before():
    assert work() is False
    assert gc.isenabled()
    gc.disable()
    try:
        assert work() is False
        assert not gc.isenabled()
    finally:
        gc.enable()


def interrupted_at(number):
    """Runs `work` and raises at one of its lines; whether there was one."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in MODULES:
            return None
        count += event == "line"
        if event == "line" and count == number:
            raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_at_any_line_leaves_the_collector_on():
    number = 1
    try:
        while interrupted_at(number):
            assert gc.isenabled(), f"line {number}"
            number += 1
    finally:
        gc.enable()
    assert number > 10
