"""The series index: which cells each series has, for all processes of the directory.

`SeriesIndex` parses records and opens no file. `IndexFile` reads the file and appends to it under its lock.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string at import.
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jobmetrics.errors import Damaged, RegistryError
from jobmetrics.families import BUILT_IN, ERASED, ERASED_SUFFIX, OVERFLOW, SPARE_SYSTEMS, Family
from jobmetrics.registry import layout
from jobmetrics.registry.cells import PRESENT, PresentCell
from jobmetrics.registry.directory import INDEX_NAME, Directory, same_file
from jobmetrics.registry.files import closing, lock_within

LOCK_WAIT = 0.05  # seconds that a process waits for the index lock
_ATTEMPTS = 20


class Contended(RegistryError):
    """Another process holds the index lock."""


class Refused(RegistryError):
    """The directory has no room for another family."""


class Moved(RegistryError):
    """The index was replaced by another: a new generation."""


class Placement(NamedTuple):
    """The cells of a series. dropped: whether they are those of the overflow series instead of the requested one."""

    first: int
    width: int
    dropped: bool = False


def _signature(family: Family) -> tuple[object, ...]:
    """Return the part of a family that two processes must agree on to share it; help texts may differ."""
    return (family.name, family.type, family.labels, family.mode, family.buckets)


class SeriesIndex:
    """The families and series of one generation, in the records fed so far.

    newest: number of each name's newest declaration. A process that declared an older one continues to record under it;
    that does not make it the newest again. damaged: bytes without a valid record. next_cell: the first free cell.
    """

    def __init__(self, header: layout.IndexHeader) -> None:
        self.identity = header.identity
        self.limit = header.limit
        self.families: dict[int, Family] = {}
        self.newest: dict[str, int] = {}
        self.series: dict[tuple[int, tuple[str, ...]], Placement] = {}
        self.present_cells: list[PresentCell] = []
        self.has_erased = False  # whether anything was ever removed or reset
        self.fed_to = layout.INDEX_HEADER_SIZE
        self.next_cell = 0
        self.damaged = 0
        self.last_record = (layout.INDEX_HEADER_SIZE, b"")  # offset and first bytes of the last valid record
        self._next_family = 0
        self._numbers: dict[tuple[object, ...], int] = {}
        self._counts: dict[int, int] = {}
        self._systems: set[str] = set()  # job systems that have recorded here
        self._used = 0  # series of the newest declarations, with the overflow series they may need
        self._superseded = 0  # the same for earlier declarations

    def feed(self, data: bytes, end: int) -> None:
        """Parse the records in bytes from `fed_to` on. Missing bytes before `end` count as damage."""
        position = self.fed_to
        for record, size in layout.records(data, self.identity, self.fed_to):
            if record is None:
                self._skip(size)
            else:
                self.last_record = position, data[position - self.fed_to :][: layout.RECORD_HEAD_SIZE]
            position += size
            if record is None:
                continue
            if record.kind == layout.FAMILY_RECORD:
                self._take_family(record)
            elif record.kind == layout.SERIES_RECORD:
                if record.number + record.width > layout.cells_behind_damage(2 * position):
                    self.damaged += size  # more cells than an index of this length describes: do not allocate them
                    continue
                self._take_series(record)
        if self.fed_to + len(data) < end:
            self._skip(end - self.fed_to - len(data))
        self.fed_to = end

    def _skip(self, damaged: int) -> None:
        self.damaged += damaged
        self.next_cell += layout.cells_behind_damage(damaged)
        self._next_family += damaged // 24 + 1

    def _take_family(self, record: layout.Record) -> None:
        family = family_from(record.body)
        if family is None:
            return
        self._next_family = max(self._next_family, record.number + 1)
        if record.number in self.families:
            return
        self.families[record.number] = family
        self._used += self._reserve(family)
        before = self.newest.get(family.name, record.number)
        self.newest[family.name] = max(record.number, before)
        if before != record.number:
            superseded = self._share(min(record.number, before))
            self._used -= superseded
            self._superseded += superseded
        self._numbers[_signature(family)] = record.number
        self.has_erased = self.has_erased or family.mode == ERASED

    def _take_series(self, record: layout.Record) -> None:
        end = record.number + record.width
        self.next_cell = max(self.next_cell, end)
        try:
            number, values = int(record.body["family"]), tuple(map(str, record.body["values"]))
        except (KeyError, TypeError, ValueError):
            return
        family = self.families.get(number)
        if family is None or family.width != record.width or len(values) != len(family.labels):
            return  # its family's record is damaged
        self.series.setdefault((number, values), Placement(record.number, record.width))
        if family.mode in PRESENT:
            self.present_cells.append((record.number, family.mode))
        at = family.system_at
        if at is not None and values[at] not in self._systems and values[at] != OVERFLOW:
            self._add_system(values[at])
        if not family.is_overflow(values) or not values:
            self._counts[number] = self._counts.get(number, 0) + 1
            if number == self.newest[family.name]:
                self._used += 1
            else:
                self._superseded += 1

    def _add_system(self, system: str) -> None:
        """Reserve the overflow series of one more job system, in the families declared so far."""
        before = {number: self._reserve(family) for number, family in self.families.items()}
        self._systems.add(system)
        for number, family in self.families.items():
            more = self._reserve(family) - before[number]
            if number == self.newest[family.name]:
                self._used += more
            else:
                self._superseded += more

    def _reserve(self, family: Family) -> int:
        """The overflow series that a family may need in this directory."""
        systems = 1 if family.system_at is None else max(SPARE_SYSTEMS, len(self._systems))
        return family.reserved * systems

    def _share(self, number: int) -> int:
        """Return how much of the limit a family uses."""
        return self._counts.get(number, 0) + self._reserve(self.families[number])

    @property
    def current(self) -> int:
        """The number of series of the newest declarations."""
        if len(self.families) == len(self.newest):
            return len(self.series)
        newest = set(self.newest.values())
        return sum(number in newest for number, _ in self.series)

    @property
    def by_metric(self) -> Counter[str]:
        """The number of series of each metric's newest declaration. Removed values count for their metric."""
        counts = Counter(number for number, _ in self.series)
        found: Counter[str] = Counter()
        for name, number in self.newest.items():
            family = self.families[number]
            found[name.removesuffix(ERASED_SUFFIX) if family.mode == ERASED else name] += counts[number]
        return found

    def number(self, family: Family) -> int | None:
        """Return the number under which exactly this definition was declared; None when it was not."""
        return self._numbers.get(_signature(family))

    def find(self, family: Family, values: tuple[str, ...]) -> Placement | None:
        number = self._numbers.get(_signature(family))
        return None if number is None else self.series.get((number, values))

    def series_of(self, family: Family) -> list[tuple[tuple[str, ...], Placement]]:
        """Return the label values and the cells of each series of the family's newest declaration."""
        newest = self.newest.get(family.name)
        return [(values, place) for (number, values), place in self.series.items() if number == newest]

    def find_erased(self, family: Family, values: tuple[str, ...]) -> Placement | None:
        """Return the cells of the removed or reset values of a series; None when nothing was removed or reset."""
        return self.find(family.erased, values) if self.has_erased else None

    def is_full(self, family: Family) -> bool:
        """Whether one more series of this family would exceed the cap or the family's half of it."""
        number = self.number(family)
        count = 0 if number is None else self._counts.get(number, 0)
        return self._would_use(family) >= self.limit or count >= max(1, self.limit // 2)

    def refuses(self, family: Family) -> bool:
        """Whether there is no room for even the overflow series of a new family. Built-in ones always have room."""
        if self.number(family) is not None or family in BUILT_IN:
            return False
        return self._would_use(family) > self.limit

    def _would_use(self, family: Family) -> int:
        """Return how much of the limit is used once the family is declared.

        Earlier declarations share a second limit of the same size, so that repeated deploys leave room for the newest.
        Only their series beyond it count against the first.
        """
        number, newest = self.number(family), self.newest.get(family.name)
        used, superseded = self._used, self._superseded
        if number is None:
            used += self._reserve(family)
            if newest is not None:
                used -= self._share(newest)
                superseded += self._share(newest)
        elif number != newest:
            return superseded
        return used + max(0, superseded - self.limit)

    def family_record(self, family: Family) -> layout.Record | None:
        """Return the record to append before a series of this family; None when the family is declared."""
        if self.number(family) is not None:
            return None
        body = {
            "name": family.name, "type": family.type, "help": family.help, "labels": family.labels,
            "mode": family.mode, "buckets": family.buckets, "unit": family.unit, "source": family.source,
            "closed": family.closed,
        }  # fmt: skip
        return layout.Record(layout.FAMILY_RECORD, self._next_family, family.width, body)

    def series_record(self, family: Family, number: int, values: tuple[str, ...]) -> layout.Record:
        body = {"family": number, "values": values}
        return layout.Record(layout.SERIES_RECORD, self.next_cell, family.width, body)


def family_from(body: object) -> Family | None:
    """Return the family in a record's body; None for an invalid body."""
    try:
        closed = tuple((str(label), tuple(map(str, values))) for label, values in body["closed"])  # type: ignore[index]
        return Family(
            str(body["name"]), str(body["type"]), str(body["help"]), tuple(map(str, body["labels"])),  # type: ignore[index]
            str(body["mode"]), tuple(map(float, body["buckets"])), str(body["source"]), str(body["unit"]), closed,  # type: ignore[index]
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def read_header(fd: int) -> tuple[layout.IndexHeader, int]:
    """Return the header and the committed length. Raises Damaged, FormatRefused or OSError."""
    head = os.pread(fd, layout.INDEX_HEADER_SIZE, 0)
    return layout.IndexHeader.unpack(head), layout.unpack_committed(head)


class IndexFile:
    """The index file of a directory. Each append takes the lock once."""

    def __init__(self, directory: Directory, limit: int) -> None:
        self._directory = directory
        self._limit = limit

    def load(self, wait: float = LOCK_WAIT) -> SeriesIndex:
        """Return the current index. A missing one is made, a damaged one is set aside.

        Raises:
            Contended: when another process holds the lock of an index that must be made or set aside.
            FormatRefused: for another format version.
            DirectoryRefused: when the directory is not safe.
            OSError: when the directory or the file cannot be used.
        """
        self._directory.prepare()
        for _ in range(_ATTEMPTS):
            try:
                fd = self._directory.open(INDEX_NAME, os.O_RDWR | os.O_CREAT)
            except Damaged:
                self._directory.set_aside_other(INDEX_NAME, LOCK_WAIT)
                continue
            with closing(fd):
                try:
                    return self._parse(fd)
                except Damaged:
                    self._replace(fd, wait)
        raise Contended("the index could not be made: other processes keep replacing it")

    def _parse(self, fd: int) -> SeriesIndex:
        header, committed = read_header(fd)
        index = SeriesIndex(header)
        _feed(fd, index, committed)
        return index

    def _replace(self, fd: int, wait: float) -> None:
        """Under the lock, after checking again: fill an empty file, set a damaged one aside."""
        if not lock_within(fd, wait):
            raise Contended
        if not same_file(fd, self._directory.file(INDEX_NAME)):
            return
        try:
            self._parse(fd)
        except Damaged:
            if os.fstat(fd).st_size == 0:
                header = layout.IndexHeader(os.urandom(layout.IDENTITY_SIZE), self._limit, time.time())
                os.pwrite(fd, header.pack(), 0)
                os.pwrite(fd, layout.pack_committed(layout.INDEX_HEADER_SIZE), layout.COMMITTED_OFFSET)
            else:
                self._directory.set_aside(INDEX_NAME)

    def is_current(self, index: SeriesIndex) -> bool:
        """Whether this is still the current index; True also when the file cannot be read now.

        An index that has lost records (cut, or restored from a copy) is set aside: their cells would be assigned again.
        """
        try:
            with closing(self._directory.open(INDEX_NAME, os.O_RDWR)) as fd:
                _check_same(fd, index)
        except _Shrunk:
            self._set_shrunk_aside(index)
            return False
        except RegistryError:
            return False
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def _set_shrunk_aside(self, index: SeriesIndex) -> None:
        """Under the lock, after checking again."""
        try:
            with closing(self._directory.open(INDEX_NAME, os.O_RDWR)) as fd:
                if lock_within(fd, LOCK_WAIT) and same_file(fd, self._directory.file(INDEX_NAME)):
                    try:
                        _check_same(fd, index)
                    except _Shrunk:
                        self._directory.set_aside(INDEX_NAME)
        except (RegistryError, FileNotFoundError):
            return  # another process was faster

    def refresh(self, index: SeriesIndex) -> None:
        """Read the records that other processes have appended. Raises Moved, Damaged or OSError."""
        try:
            fd = self._directory.open(INDEX_NAME, os.O_RDONLY)
        except FileNotFoundError:
            raise Moved from None
        with closing(fd):
            self._catch_up(fd, index)

    def _catch_up(self, fd: int, index: SeriesIndex) -> None:
        try:
            committed = _check_same(fd, index)
        except _Shrunk:
            self._set_shrunk_aside(index)
            raise Moved from None
        except Damaged:
            raise Moved from None
        _feed(fd, index, committed)

    def place(self, index: SeriesIndex, family: Family, values: tuple[str, ...], wait: float) -> Placement:
        """Return the cells of a series, appended if it is new; beyond the cap those of the overflow series.

        Raises:
            Contended: when the lock was not free within `wait` seconds.
            Moved: when another index has replaced this one.
            Refused: for a new family beyond the cap.
            OSError: when it cannot be written, such as on a full disk.
        """
        if index.is_full(family):
            self.refresh(index)  # another process may have placed it
            if index.refuses(family):
                raise Refused
            asked, values = values, family.overflow(values)
            found = index.find(family, asked)
            overflow = index.find(family, values) if found is None and index.is_full(family) else None
            if found is not None:
                return found
            if overflow is not None:
                return Placement(overflow.first, overflow.width, dropped=True)
            values = asked
        with closing(self._open()) as fd:
            if self._lock(fd, index, wait, lambda: index.find(family, values) is not None):
                return self._place_locked(fd, index, family, values)
        found = index.find(family, values)
        assert found is not None, "the lock was not needed"
        return found

    def place_all(self, index: SeriesIndex, wanted: Sequence[tuple[Family, tuple[str, ...]]], wait: float) -> None:
        """Append those of several series that are new, taking the lock once.

        Raises:
            Contended: when the lock was not free within `wait` seconds.
            Moved: when another index has replaced this one.
            OSError: when it cannot be written, such as on a full disk.
        """
        with closing(self._open()) as fd:
            if not self._lock(fd, index, wait, lambda: all(index.find(*series) for series in wanted)):
                return
            for family, values in wanted:
                if index.find(family, values) is None and not index.refuses(family):
                    self._place_locked(fd, index, family, values)

    def _open(self) -> int:
        try:
            return self._directory.open(INDEX_NAME, os.O_RDWR)
        except FileNotFoundError:
            raise Moved from None

    def _lock(self, fd: int, index: SeriesIndex, wait: float, is_placed: Callable[[], bool]) -> bool:
        """Lock the open index and read the records that other processes have appended.

        While another process holds the lock, earlier records are read without it. This process then holds the lock for
        a shorter time, which matters when many processes wait.

        Returns:
            True with the lock. False without it, once `is_placed` returns True: others have appended the wanted series.

        Raises:
            Contended, Moved, Damaged, OSError: as `place` does.
        """
        deadline = time.monotonic() + wait
        left = 0.0
        while not lock_within(fd, min(left, LOCK_WAIT)):
            try:
                _feed(fd, index, _check_same(fd, index))
            except Damaged:
                pass  # checked again under the lock
            if is_placed():
                return False
            left = deadline - time.monotonic()
            if left <= 0.0:
                raise Contended
        if not same_file(fd, self._directory.file(INDEX_NAME)):
            raise Moved
        self._catch_up(fd, index)
        return True

    def _place_locked(self, fd: int, index: SeriesIndex, family: Family, values: tuple[str, ...]) -> Placement:
        dropped = False
        found = index.find(family, values)
        declare = index.family_record(family)
        if found is None and index.is_full(family):
            overflow = family.overflow(values)
            dropped = overflow != values
            values, found = overflow, index.find(family, overflow)
        if declare is not None:
            self._append(fd, index, declare)
        if found is None:
            number = index.number(family)
            assert number is not None, "the family was declared above"
            self._append(fd, index, index.series_record(family, number, values))
            found = index.find(family, values)
            if found is None:
                raise Damaged("the index does not hold what was appended to it")
        return Placement(found.first, found.width, dropped)

    @staticmethod
    def _append(fd: int, index: SeriesIndex, record: layout.Record) -> None:
        data = record.pack(index.identity, index.fed_to)
        if os.pwrite(fd, data, index.fed_to) != len(data):
            raise OSError(errno.ENOSPC, "no space left for the index")
        os.pwrite(fd, layout.pack_committed(index.fed_to + len(data)), layout.COMMITTED_OFFSET)
        index.feed(data, index.fed_to + len(data))


class _Shrunk(Damaged):
    """The index has lost records that this process knows."""


def _check_same(fd: int, index: SeriesIndex) -> int:
    """Return the committed length of an open index, if it is still the known one. Raises Moved, Damaged or OSError."""
    header, committed = read_header(fd)
    if header.identity != index.identity:
        raise Moved
    offset, head = index.last_record
    if committed < index.fed_to or os.pread(fd, len(head), offset) != head:
        raise _Shrunk
    return committed


def _feed(fd: int, index: SeriesIndex, committed: int) -> None:
    if committed > index.fed_to:
        index.feed(os.pread(fd, committed - index.fed_to, index.fed_to), committed)


def parse_index(data: bytes) -> SeriesIndex:
    """Return the series in an index file's bytes. Raises Damaged or FormatRefused."""
    index = SeriesIndex(layout.IndexHeader.unpack(data))
    committed = layout.unpack_committed(data)
    index.feed(data[index.fed_to : committed], committed)
    return index
