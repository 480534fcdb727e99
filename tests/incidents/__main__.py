"""Stage incidents under the shipped rules: `python -m tests.incidents [--minutes N] [--only NAME...] [--list]`.

Each world is one application with real workers, an exporter and one trouble, or none. All run side by side under one
Prometheus and one Alertmanager with the shipped rules and thresholds. A week of history is replaced by a day that is
written before the start. The result is one line per world; the exit code is 1 if a line differs from what is expected.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.prometheus_api import PrometheusApi
from tests.incidents.staging import CHECK_SECONDS, Notifications, Stage, watched
from tests.incidents.worlds import LATER, WORLDS, Change, World
from tests.support import servers

MINUTES = 60.0  # of the worlds; their start takes up to five more
HEALTHY = 3.0  # minutes before the troubles start
POLL_SECONDS = 5.0
SENT_SECONDS = 45.0  # Alertmanager waits for 30 seconds before it sends
START_PAUSE = 2.0  # seconds between the starts of two worlds
# Two scrapes, an evaluation of the slowest rules, and a poll.
RESOLVED_SECONDS = 2 * 15 + 60 + POLL_SECONDS


@dataclass
class Watch:
    """What became of one world. Times are of the monotonic clock, None for what has not happened."""

    world: World
    stage: Stage
    started: float | None = None
    repeated: float = 0.0
    mended: float | None = None
    resolved: float | None = None
    seen: dict[str, float] = field(default_factory=dict)
    firing: set[str] = field(default_factory=set)
    raised: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def step(self, firing: set[str], now: float, *, healthy: bool, last: bool) -> None:
        """Note the alerts that fire now, and go on: start the trouble, repeat it, mend it.

        healthy: whether the troubles have not begun. last: whether only the time that a mend takes is left.
        """
        self.raised.update(firing - self.firing)
        self.firing = firing
        for name in firing:
            self.seen.setdefault(name, now)
        if self.world.trouble is None or healthy:
            return
        if self.started is None or (
            self.world.again and self.mended is None and now - self.repeated >= 60 * self.world.again
        ):
            self.started = self.started or now
            self.repeated = now
            self._change(self.world.trouble)
        if self.world.mend is None:
            return
        if self.mended is None and self._reported(now, last):
            self.stage.check()
            if self.stage.checked() is not None:
                self._change(self.world.mend)
                self.mended = time.monotonic()
                print(f"{self.world.name}: mended", flush=True)
        elif self.mended is not None and self.resolved is None and not firing & self.world.expected.keys():
            self.resolved = now
            print(f"{self.world.name}: resolved after {now - self.mended:.0f} s", flush=True)

    def _change(self, change: Change) -> None:
        try:
            change(self.stage)
        except OSError as error:  # the other worlds go on
            self.errors.append(f"{error!r} while staging it")

    def _reported(self, now: float, last: bool) -> bool:
        """Whether the alerts are there, or late, and the trouble has lasted as long as it has to."""
        assert self.started is not None
        late = now - self.started > 60 * self.world.takes + SENT_SECONDS
        there = [self.seen.get(name, now) for name in self.world.expected]
        done = now - max(there, default=now) >= SENT_SECONDS or late
        return done and (last or now - self.started >= 60 * self.world.lasts)

    # ------------------------------------------------------------------ the table

    def row(self, now: float) -> tuple[str, ...]:
        world = self.world
        since = self.started or now
        expected = ", ".join(f"{name} in {60 * limit:.0f}" for name, limit in world.expected.items())
        seen = [f"{self.seen[name] - since:.0f}" for name in world.expected if name in self.seen]
        sent = Notifications.sent.get(world.name, [])
        return (
            world.name, expected or "nothing", ", ".join(seen) or "-", ", ".join(self._others()) or "-",
            self._resolution(), ", ".join(sorted(set().union(*sent))) or "-", (self.stage.checked() or "-")[:90],
            "; ".join(self.mismatches(now)) or "as expected",
        )  # fmt: skip

    def _others(self) -> list[str]:
        return [f"{name} ({'before' if self.started and at < self.started else round(at - (self.started or at))})"
                for name, at in self.seen.items() if name not in self.world.expected]  # fmt: skip

    def _resolution(self) -> str:
        if self.mended is None or not self.world.expected.keys() & self.seen.keys():
            return "-"
        return "not waited for" if self.resolved is None else f"after {self.resolved - self.mended:.0f}"

    def mismatches(self, now: float) -> Iterator[str]:
        """Each difference between the world's declaration and what was seen."""
        world = self.world
        allowed = {*world.consequences, *world.suppressed}
        yield from self.errors
        for name, limit in world.expected.items():
            if name not in self.seen:
                yield f"{name} is missing"
            elif self.started is None or not 0 <= self.seen[name] - self.started <= 60 * limit:
                yield f"{name} at the wrong time"
            elif self.raised[name] > 1:
                yield f"{name} was raised {self.raised[name]} times"
        yield from (f"{name} is not expected" for name in self.seen if name not in {*world.expected, *allowed})
        sent = set().union(*Notifications.sent.get(world.name, []))
        yield from (f"{name} was sent" for name in sorted(sent & set(world.suppressed)))
        if self.mended is not None:
            if not sent & world.expected.keys():
                yield "nothing was sent"
            limit = 60 * world.ends + RESOLVED_SECONDS
            if (self.resolved or now) - self.mended > limit:
                yield f"not resolved within {limit:.0f} seconds"
        checked = self.stage.checked()
        if world.expected and world.visible and checked == "nothing":
            yield "check finds nothing"
        if not world.expected and checked not in (None, "nothing"):
            yield "check finds a problem"


def run(worlds: Sequence[World], minutes: float, base: Path) -> int:
    """Run these worlds side by side, print the table and return the exit code."""
    with ExitStack() as stack:
        shared = stack.enter_context(servers.redis_server("--databases", str(len(worlds) + 1)))
        ports = servers.free_ports(len(worlds))
        watches = []
        for database, (world, port) in enumerate(zip(worlds, ports, strict=True)):
            redis = stack.enter_context(servers.redis_server()) if world.own_redis else None
            url = redis.url if redis else f"redis://127.0.0.1:{shared.port}/{database}"
            stage = Stage(world, base, url, port, LATER)
            stage.redis = redis
            stack.callback(stage.close)
            watches.append(Watch(world, stage))
        for watch in watches:
            watch.stage.open()
            time.sleep(START_PAUSE)  # all at once would take the processors from the first ones
        api = stack.enter_context(watched(worlds, ports))
        print(f"{len(worlds)} worlds for {minutes:.0f} minutes, logs in {base}", flush=True)
        broken = _watch(watches, api, minutes)
        return _report(watches, broken)


def _watch(watches: Sequence[Watch], api: PrometheusApi, minutes: float) -> set[str]:
    """Watch until the time is over.

    Returns:
        The rules that could not be evaluated, and the alerts of no world.
    """
    start = time.monotonic()
    end = start + 60 * minutes
    broken: set[str] = set()
    shown: set[tuple[str, str]] = set()
    while (now := time.monotonic()) < end:
        time.sleep(POLL_SECONDS)
        rules: list[dict[str, Any]] = []
        with contextlib.suppress(OSError):  # too busy to answer in time
            rules = api.rules()
        if not rules:
            continue
        broken |= {f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] == "err"}
        firing: dict[str, set[str]] = {watch.world.name: set() for watch in watches}
        for rule in rules:
            for alert in rule.get("alerts", []):
                if alert["state"] == "firing":
                    firing.setdefault(alert["labels"].get("job", ""), set()).add(rule["name"])
        broken |= {name for world in firing.keys() - {watch.world.name for watch in watches} for name in firing[world]}
        for world, names in firing.items():
            for name in names - {each for where, each in shown if where == world}:
                print(f"{now - start:5.0f} s  {world}: {name}", flush=True)
                shown.add((world, name))
        for watch in watches:
            healthy, last = now - start < 60 * HEALTHY, end - now < 60 * HEALTHY
            watch.step(firing[watch.world.name], time.monotonic(), healthy=healthy, last=last)
    for watch in watches:
        watch.stage.check()
    return broken


def _report(watches: Sequence[Watch], broken: set[str]) -> int:
    deadline = time.monotonic() + CHECK_SECONDS + 60
    while any(watch.stage.checked() is None for watch in watches) and time.monotonic() < deadline:
        time.sleep(0.2)
    now = time.monotonic()
    heads = ("world", "expected (s)", "seen (s)", "other alerts", "resolved (s)", "sent", "check", "verdict")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for watch in watches:
        print("| " + " | ".join(watch.row(now)) + " |")
    for each in sorted(broken):
        print(f"no world's: {each}")
    return 1 if broken or any(list(watch.mismatches(now)) for watch in watches) else 0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # through the blocks that end the processes
    parser = argparse.ArgumentParser(prog="python -m tests.incidents", description="Stage incidents under the rules.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long the worlds run (default %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[world.name for world in WORLDS], help="worlds")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="a new folder for the processes' logs, which is kept")
    parser.add_argument("--list", action="store_true", help="print the worlds and end")
    chosen = parser.parse_args()
    worlds = [world for world in WORLDS if chosen.only is None or world.name in chosen.only]
    short = [world for world in worlds if HEALTHY + world.takes + 1 > chosen.minutes]
    for world in short:
        print(f"left out: {world.name} takes {HEALTHY + world.takes + 1:.0f} minutes")
    worlds = [world for world in worlds if world not in short]
    if chosen.list:
        for world in worlds:
            print(world.name, ", ".join(world.expected) or "nothing")
        return 0
    with tempfile.TemporaryDirectory(prefix="jobmetrics-incidents-") as temporary:
        base = chosen.logs or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        return run(worlds, chosen.minutes, base.resolve())


if __name__ == "__main__":
    sys.exit(main())
