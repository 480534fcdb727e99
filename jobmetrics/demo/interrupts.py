"""Signals as something to ask about, so that no statement of the clean-up can be cut in two."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Any, final

from jobmetrics.demo.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@final
class Interrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted; `check` and `pause` raise `Interrupted`.

    A handler that raised could hit between the start of a process and the note of its pid, or inside
    the clean-up. This one sets a number and writes a byte, so that `pause` ends at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.count = 0
        self._previous: dict[int, Any] = {}
        self._read_end, self._write_end = -1, -1

    def __enter__(self) -> Interrupts:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._read_end)
        os.close(self._write_end)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.count += 1
        try:
            os.write(self._write_end, b"!")
        except BlockingIOError:
            pass  # the pipe is full of signals already

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come since the last `accept`."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def pause(self, seconds: float) -> None:
        """Wait, or raise `Interrupted` as soon as a signal comes."""
        self.check()
        select.select([self._read_end], [], [], seconds)
        self.check()

    def accept(self) -> None:
        """Take the signal that came as an answered request; the next one counts anew."""
        self.signum, self.count = None, 0
        try:
            while os.read(self._read_end, 512):
                pass
        except BlockingIOError:
            pass  # empty again
