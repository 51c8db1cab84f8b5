"""Signals are heard while a training runs, and given back behind it."""

import os
import signal
import threading

import pytest

from keras_prunetrain.fit.signals import Signals


@pytest.fixture
def handlers():
    before = {x: signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_a_second_one_acts_as_ever(handlers):
    signals = Signals()
    signals.catch()
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so(handlers):
    """As Ctrl-C does in a program that a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = Signals()
    signals.catch()
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received is None
    signals.release()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]


def test_another_thread_leaves_the_signals_alone(handlers):
    thread = threading.Thread(target=Signals().catch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]
