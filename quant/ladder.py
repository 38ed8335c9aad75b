"""Which precision answers under a latency target, chosen at run time from what requests took.

A ladder holds executables of one model, from the widest precision to the narrowest. One is current, on its rung:

- It goes down as soon as the 99th percentile of the last responses, waiting included, nears the target; what was
  measured on the rung above then counts no more.
- It goes up when it has answered some dozens of requests and the wider one is expected not to near the target with the
  last of them. Its calls are expected to take as much longer than those of the current one as they did side by side, in
  the beginning; and requests to wait as long as in a queue of random arrivals and constant service, whose waits have
  an exponential tail (Kingman 1961), or longer if they do so now.
- An ascent that has to be taken back makes the next one wait for twice as many responses.
- A request that has waited for so long that the current one is not expected to answer it well within the target is
  answered by the widest below that is. So a burst costs the answers of some requests precision, and leaves the rung as
  it is; and when the load rises for good, those that queue before that shows are not late.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WINDOW = 100
"""Responses over which the percentile is taken, the fewest that show a 99th."""
CALM = 30
"""Responses, the last ones, from which it follows whether the wider one would stay within the target."""
NEAR = 0.8
"""Share of the target from which on it goes down, and within which the wider one must be expected to stay."""
WELL_WITHIN = 0.6
"""Share of the target within which the current one must be expected to answer a request, or one below it does."""
MOST_BUSY = 0.8
"""Share of its time that the wider one may be expected to work."""
LONGEST_WAIT = 50
"""Times as many responses as else before an ascent, at most."""
_WARM_UP, _SIDE_BY_SIDE = 2, 8

Call = Callable[..., object]
Clock = Callable[[], float]


class Response(NamedTuple):
    """When a request arrived, its answer was begun and it was there, in seconds of one clock; and on which rung."""

    arrived: float
    started: float
    ended: float
    rung: int

    @property
    def latency(self) -> float:
        """Seconds from the arrival on."""
        return self.ended - self.arrived

    @property
    def service(self) -> float:
        """Seconds of the call alone."""
        return self.ended - self.started


class Ladder:
    """Executables of one model, the widest precision first; a call runs the one on the current ``rung``."""

    def __init__(
        self, executables: Sequence[Call], target: float, inputs: Sequence[np.ndarray], clock: Clock = time.perf_counter
    ) -> None:
        """Call each a few times on ``inputs``, in turns, to see what they take.

        Raises:
            ValueError: there are no executables, the target is not a positive time, one is no faster than the one
                before, or the last takes longer than the target.
        """
        if not executables:
            raise ValueError("a ladder needs at least one executable.")
        self._executables, self._clock = executables, clock
        self.services = _side_by_side(executables, inputs, clock)
        self.controller = Controller(self.services, target)

    def answer(self, arrived: float, *inputs: np.ndarray) -> tuple[list[np.ndarray], Response]:
        """Answer a request that arrived, by the ladder's clock, at ``arrived``."""
        started = self._clock()
        rung = self.controller.rung_after(started - arrived)
        outputs = self._executables[rung](*inputs)
        response = Response(arrived, started, self._clock(), rung)
        self.controller.observe(response)
        return outputs, response


class Controller:
    """Chooses the ``rung`` from responses; ``services`` are the seconds of a call on each, side by side.

    Raises:
        ValueError: as :class:`Ladder` does.
    """

    def __init__(self, services: Sequence[float], target: float) -> None:
        if not (math.isfinite(target) and target > 0):
            raise ValueError(f"the target must be a positive number of seconds, not {target}.")
        for wider, narrower in pairwise(services):
            if narrower >= wider:
                raise ValueError(
                    f"a call takes {1000 * narrower:.3g} ms on a rung below one of {1000 * wider:.3g} ms: leave out "
                    "what is no faster than a wider precision."
                )
        if services[-1] > target:
            raise ValueError(
                f"the narrowest precision takes {1000 * services[-1]:.3g} ms a call, more than the target of "
                f"{1000 * target:.3g} ms: raise it, or add a smaller model."
            )
        self.rung = 0
        self._services, self._target = services, target
        self._window: deque[Response] = deque(maxlen=WINDOW)
        self._since = 0
        self._wait = 1
        self._on_trial = False

    def rung_after(self, waited: float) -> int:
        """Return the rung for a request that has waited for so many seconds: the current one, or one below it."""
        in_time = WELL_WITHIN * self._target - waited
        below = range(self.rung, len(self._services))
        return next((rung for rung in below if self._services[rung] <= in_time), below[-1])

    def observe(self, response: Response) -> None:
        """Take note of a response, and go up or down if it is time to.

        Of a rung that was left no responses come any more, as one request is answered at a time.
        """
        self._window.append(response)
        self._since += 1
        if len(self._window) == 1:
            return  # a single one tells nothing
        near = _p99([response.latency for response in self._window]) > NEAR * self._target
        if near and self.rung < len(self._services) - 1:
            self._descend()
        elif self._since >= CALM * self._wait:
            self._held()
            if self.rung > 0 and self._wider_fits():
                self._move(self.rung - 1)
                self._on_trial = True

    def _descend(self) -> None:
        if self._on_trial:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            self._on_trial = False
        self._move(self.rung + 1)

    def _held(self) -> None:
        """An ascent that lasted as long as the next one would have to wait was right."""
        if self._on_trial:
            self._wait, self._on_trial = 1, False

    def _on_current(self, response: Response) -> Response:
        """Return the response as if the current rung had answered, where one below it did."""
        service = response.service * self._services[self.rung] / self._services[response.rung]
        return response._replace(ended=response.started + service)

    def _move(self, rung: int) -> None:
        self.rung, self._since = rung, 0
        self._window.clear()

    def _wider_fits(self) -> bool:
        slower = self._services[self.rung - 1] / self._services[self.rung]
        last = list(self._window)[-CALM:]
        latency, busy = expected([self._on_current(response) for response in last], slower)
        return latency <= NEAR * self._target and busy <= MOST_BUSY


def expected(responses: Sequence[Response], slower: float) -> tuple[float, float]:
    """Return the p99 and the share of busy time if each of the calls had taken ``slower`` times as long.

    The p99 is infinite where requests came faster than that.
    """
    service = float(np.mean([response.service for response in responses]))
    arrivals = [response.arrived for response in responses]
    span = max(arrivals) - min(arrivals)
    busy = (len(responses) - 1) * service / span if span > 0 else math.inf
    if busy * slower >= 1:
        return math.inf, busy * slower
    waits = _p99([response.started - response.arrived for response in responses])
    wait = _tail(slower * service, slower * busy) * max(1.0, waits / _tail(service, busy))
    hiccup = _p99([response.service for response in responses]) - service  # takes as long on any rung
    return wait + slower * service + hiccup, busy * slower


def _tail(service: float, busy: float) -> float:
    """Return the wait that one in a hundred random arrivals exceeds where calls take ``service`` seconds each.

    Those that find the queue busy wait for ``service / (2 * (1 - busy))`` on average. It is approximate, and on the
    safe side where the queue is seldom busy.
    """
    return service / (2 * (1 - busy)) * math.log(max(math.e, 100 * busy))


def _p99(seconds: Sequence[float]) -> float:
    """Return the value that one in a hundred may exceed; one of fewer may, too, so that no hiccup moves anything."""
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))]


def _side_by_side(executables: Sequence[Call], inputs: Sequence[np.ndarray], clock: Clock) -> list[float]:
    """Return the median seconds of a call of each, taken in turns."""
    times: list[list[float]] = [[] for _ in executables]
    for turn in range(_WARM_UP + _SIDE_BY_SIDE):
        for executable, own in zip(executables, times, strict=True):
            start = clock()
            executable(*inputs)
            if turn >= _WARM_UP:
                own.append(clock() - start)
    return [float(np.median(own)) for own in times]
