"""Stopping long work between two steps when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_on_signal(*, patient: bool = False) -> Iterator[Stop]:
    """Have Ctrl-C and SIGTERM noted instead of raised; a second one acts at once.

    Not so if `patient`: torchrun passes on a signal that its processes may have had already.

    Python runs handlers in the main thread alone: elsewhere signals are left as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        if patient:
            return
        # What was there before answers the second signal: an exception, or the end.
        for each in _SIGNALS:
            signal.signal(each, before[each])

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])
