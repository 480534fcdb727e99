"""The processes of a storm: each records with the public API until it is killed or asked to end."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jobmetrics
from jobmetrics import settings
from jobmetrics.registry.write import current
from tests.multiprocess.support import run_and_exit
from tests.storms.update_ledger import LANES, Account, UpdateLedger

BUCKETS = (1.0, 2.0, 5.0)
DEPLOYED_BUCKETS = (1.0, 3.0)
SERIES = 40
CLONE_NEWPID, CLONE_NEWUSER = 0x20000000, 0x10000000
NOT_ALLOWED = 77  # exit status of a process that may not make namespaces


class Instruments:
    """The instruments of each process: one counted update is one addition to each of three series."""

    def __init__(self, path: Path, account: Account, buckets: tuple[float, ...] = BUCKETS) -> None:
        settings.configure(dir=path, propagate_errors=False)
        self._account = account
        self._all = jobmetrics.Counter("storm_updates", "Updates of all processes.")
        self._some = jobmetrics.Counter("storm_parts", "The same by part.", ["part"])
        self._sizes = jobmetrics.Histogram("storm_sizes", "A size for each update.", buckets=buckets)
        self._bound = self._some.labels("0")

    def record(self, n: int, lane: int = 0) -> None:
        self._account.begin(lane)
        self._all.inc()
        self._some.labels(str(n % SERIES)).inc()
        self._sizes.observe(float(n % 6))
        self._account.end(lane, in_slot=self.in_slot())

    def in_slot(self) -> bool:
        """Whether updates reach the directory now. They wait in process memory while the directory has no space."""
        process = current.writer().session.process
        return process.slot is not None and not process.waiting


@dataclass
class Running:
    """A process of the storm. leaves: whether it exits by itself."""

    pid: int
    account: Account
    leaves: bool


def until_killed(path: Path, account: Account, chance: random.Random) -> None:
    """Record continuously."""
    _record_on(Instruments(path, account), 0, chance)


def deployed(path: Path, account: Account, chance: random.Random) -> None:
    """Record as a newer release with other histogram buckets does."""
    _record_on(Instruments(path, account, DEPLOYED_BUCKETS), 0, chance)


def rest(n: int, chance: random.Random) -> None:
    """Sleep now and then, so that other processes run and kills are frequent and hit every step."""
    if n % 100 == 99:
        time.sleep(chance.uniform(0.0, 0.01))


def with_clock_jumps(path: Path, account: Account, chance: random.Random) -> None:
    """Record continuously, while the wall clock jumps by up to a day in both directions."""
    real, offset = time.time, [0.0]
    setattr(time, "time", lambda: real() + offset[0])  # noqa: B010 - a function to mypy
    one = Instruments(path, account)
    for n in range(10**9):
        if n % 1000 == 0:
            offset[0] = chance.uniform(-86_400.0, 86_400.0)
        one.record(n)
        rest(n, chance)


def with_threads(path: Path, account: Account, chance: random.Random) -> None:
    """Threads and a signal handler record while the main thread forks children that also record."""
    one = Instruments(path, account)

    def handler(*_: object) -> None:
        one.record(1, lane=1)
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # only now: a handler within the handler would share its lane

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    for lane in (2, 3):
        threading.Thread(target=_record_on, args=(one, lane, chance), daemon=True).start()
    for n in range(10**9):
        one.record(n, lane=0)
        if n % 200 == 0:
            lane = 8 + (n // 200) % (LANES - 8)  # the lane's earlier child has ended: each child is waited for
            if (pid := os.fork()) == 0:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                run_and_exit(functools.partial(_record_on, one, lane, chance, 5))
            os.waitpid(pid, 0)
            account.close(lane)


def _record_on(one: Instruments, lane: int, chance: random.Random, times: int = 10**9) -> None:
    for n in range(times):
        one.record(n, lane)
        rest(n, chance)


def recycled(path: Path, account: Account, chance: random.Random) -> None:
    """Record for a short time, and exit normally."""
    one = Instruments(path, account)
    for n in range(chance.randrange(1, 200)):
        one.record(n)


def in_namespaces(path: Path, account: Account, chance: random.Random) -> None:
    """Record in a new pid and user namespace, as process 1. Killing the outer process ends it."""
    if ctypes.CDLL(None).unshare(CLONE_NEWPID | CLONE_NEWUSER):
        os._exit(NOT_ALLOWED)
    if (pid := os.fork()) == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        run_and_exit(lambda: until_killed(path, account, chance))
    os.waitpid(pid, 0)


KINDS = (until_killed, deployed, with_clock_jumps, with_threads, recycled, in_namespaces)


class Storm:
    """Processes of random kinds; killed ones are replaced.

    Args:
        path: The registry directory.
        chance: The source of randomness, seeded by the test, which prints the seed.
        ledger: Has an account for each process.
    """

    def __init__(self, path: Path, chance: random.Random, ledger: UpdateLedger) -> None:
        self._path = path
        self._chance = chance
        self._ledger = ledger
        self._running: list[Running] = []

    def start(self, kind: Callable[[Path, Account, random.Random], None]) -> None:
        account, chance = self._ledger.open(), random.Random(self._chance.random())
        pid = os.fork()
        if pid == 0:
            os.setsid()  # so that a kill reaches its children
            run_and_exit(lambda: kind(self._path, account, chance))
        self._running.append(Running(pid, account, leaves=kind is recycled))

    def kill_one(self) -> None:
        """Kill a random process with all its children and threads."""
        self._kill(self._running.pop(self._chance.randrange(len(self._running))))

    def _kill(self, victim: Running) -> None:
        if not victim.leaves:
            victim.account.killed = True
            try:
                os.killpg(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(victim.pid, signal.SIGKILL)  # it has not called setsid yet
        _, status = os.waitpid(victim.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code == (0 if victim.leaves else -signal.SIGKILL), f"a process of the storm ended with {code}"

    def end(self) -> None:
        while self._running:
            self._kill(self._running.pop())

    def __len__(self) -> int:
        return len(self._running)


@contextlib.contextmanager
def storm(path: Path, chance: random.Random, ledger: UpdateLedger) -> Iterator[Storm]:
    """A storm that is ended when the block ends, also after an exception."""
    made = Storm(path, chance, ledger)
    try:
        yield made
    finally:
        made.end()


def may_make_namespaces() -> bool:
    """Whether this process may make a pid and a user namespace."""
    if (pid := os.fork()) == 0:
        os._exit(NOT_ALLOWED if ctypes.CDLL(None).unshare(CLONE_NEWPID | CLONE_NEWUSER) else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
