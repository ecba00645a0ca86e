"""Rows of numbers, and the items that give them one after the other within a limit of time."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.process import interruption

NO_TIME = "no time"
LARGE = 1000  # from here on numbers are written without a power of ten
LEAST = 2.0  # seconds, below which nothing new is begun
FINE, NOT_FINE, MEASURED = "fine", "NOT FINE", "measured"
FAILED, LEFT_OUT = "failed", "left out"


class Row(NamedTuple):
    """One number.

    Attributes:
      name: what it is of.
      value: the number; None where there is none.
      unit: of the value, empty of a pure number.
      expected: what is expected, in words; empty if nothing is.
      state: ``FINE`` or ``NOT_FINE`` as it is what is expected or not, ``MEASURED`` where
        nothing is expected, ``FAILED`` or ``LEFT_OUT`` with the reason as note.
      note: what else there is to know.
    """

    name: str
    value: float | None = None
    unit: str = ""
    expected: str = ""
    state: str = MEASURED
    note: str = ""

    @property
    def shown(self) -> str:
        """The value to three digits, with its unit."""
        if self.value is None:
            return "–"
        large = math.isfinite(self.value) and self.value >= LARGE
        return f"{self.value:{',.0f' if large else '.3g'}} {self.unit}".strip()


class Clock:
    """The time that there is.

    Args:
      seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._begun, self._seconds = time.monotonic(), seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds to the limit, never below zero."""
        return max(self._seconds - self.elapsed, 0.0)


Item = Callable[[Any], Iterator[Row]]


def at_most(name: str, value: float, most: float, note: str = "") -> Row:
    """The row of a number that must not be larger than another; NaN is not fine."""
    state = FINE if value <= most else NOT_FINE
    return Row(name, value, expected=f"at most {most:g}", state=state, note=note)


def left_out(name: str, reason: str = NO_TIME) -> Row:
    """The row of what was not measured."""
    return Row(name, state=LEFT_OUT, note=reason)


def failed(name: str, error: Exception) -> Row:
    """The row of what raised an error."""
    words = " ".join(str(error).split())[:300]
    return Row(
        name, state=FAILED, note=f"{type(error).__name__}: {words}" if words else repr(error)
    )


def measure(
    items: Mapping[str, Item], bench: Any, clock: Clock, keep: Callable[[str, Row], None]
) -> None:
    """Measures items one after the other; every one of them gives a row at least.

    Args:
      items: by name, the most important first.
      bench: what they are given.
      clock: the time that there is. An item that has not come to its end by then is left behind.
      keep: takes the name of an item and a row of it, as soon as it is known.

    Raises:
      KeyboardInterrupt: if a signal came.
    """
    for name, item in items.items():
        if clock.left < LEAST:
            keep(name, left_out(name))
            continue
        taken = _Taken(name, keep)
        try:
            interruption.call(lambda item=item, taken=taken: taken.take(item(bench)), clock.left)  # type: ignore[misc]
        except TimeoutError:
            taken.close(left_out(name, f"{NO_TIME}: it had not come to its end"))
        except Exception as error:
            taken.close(failed(name, error))
        except KeyboardInterrupt:
            taken.close()
            raise


class _Taken:
    """Passes on the rows of an item, until it is closed: what is left behind may go on."""

    def __init__(self, name: str, keep: Callable[[str, Row], None]) -> None:
        self._name, self._keep, self._open = name, keep, True

    def take(self, rows: Iterator[Row]) -> None:
        for row in rows:
            if not self._open:
                return
            self._keep(self._name, row)

    def close(self, last: Row | None = None) -> None:
        self._open = False
        if last is not None:
            self._keep(self._name, last)
