"""Signals that tell the process to end, handled between two steps."""

import logging
import signal
import threading

_LOG = logging.getLogger("keras_prunetrain")


class Signals:
    """Lets a process that is told to end (SIGTERM, Ctrl-C) finish its step.

    Attributes:
        received: The number of the signal that came, or `None`.
    """

    def __init__(self):
        self.received = None
        self._before = {}

    def catch(self) -> None:
        """Begins to catch signals; only the main thread of Python can."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            # One that is ignored, as Ctrl-C in the background of a shell, stays
            # so; `None`, of a library in C, could not be given back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.received = number
        self.release()  # A second one ends the process as ever.

    def end(self, folder: str) -> None:
        """Ends the process with the status that the signal means.

        Args:
            folder: Where the backups are, for the log.
        """
        number, self.received = self.received, None
        _LOG.warning(
            "%s: the training ends here. Start the program again to go on from "
            "the last backup in '%s'.",
            signal.Signals(number).name,
            folder,
        )
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def release(self) -> None:
        """Hands the signals back to those who had them before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
