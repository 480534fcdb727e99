"""The bytes of the files in a registry directory. No file is opened here.

Integers are little-endian. Every header and record has a CRC-32, which detects a flipped bit.

Index file
    0    header: magic, format version, identity, time of creation, limit, CRC
    56   committed word, 8 bytes aligned: length of the index in bytes and a CRC of it; written last
    64   records, each 8-byte aligned: mark, size, CRC, kind, family number or first cell, width, JSON body

Slot file
    0    header: magic, format version, journal entries, offset of the cells, identity, serial, CRC
    64   owner record: lease number, start, pid namespace, capacity, system, role, CRC; then pid and complement
    256  journal, five columns of words: state, execution hash, start, end and series of each entry;
         then the job id of each entry, 48 bytes of UTF-8
    then, page aligned: the cells, float64
"""

# No `from __future__ import annotations`: NamedTuple would compile each string at import.
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jobmetrics.errors import Damaged, FormatRefused

FORMAT_VERSION = 3
PAGE = 4096
CELL = 8  # bytes of a cell and of a journal word

INDEX_MAGIC = b"JOBMIDX\n"
SLOT_MAGIC = b"JOBMSLT\n"

_INDEX_HEADER = struct.Struct("<8sII16sdQ4x")  # magic, version, zero, identity, created, limit
_CRC = struct.Struct("<I")
COMMITTED_OFFSET = _INDEX_HEADER.size + _CRC.size
_COMMITTED = struct.Struct("<II")
INDEX_HEADER_SIZE = 64

_RECORD = struct.Struct("<IIIHHII")  # mark, size, crc, kind, zero, number, width
_RECORD_MARK = 0x4A4D5245
FAMILY_RECORD = 1
SERIES_RECORD = 2
MAX_RECORD = 1 << 20
MAX_WIDTH = 256  # cells of one series

_SLOT_HEADER = struct.Struct("<8sIII16s8s16x")  # magic, version, journal entries, cells offset, identity, serial
SLOT_HEADER_SIZE = 64
OWNER_OFFSET = 64
_OWNER = struct.Struct("<QQQII16s16s4x")  # lease, start, pid namespace, capacity, zero, system, role
OWNER_CRC_OFFSET = OWNER_OFFSET + _OWNER.size
PID_OFFSET = OWNER_CRC_OFFSET + _CRC.size  # outside the CRC and written last
_WORD = struct.Struct("<Q")
OWNER_SIZE = PID_OFFSET + _WORD.size - OWNER_OFFSET
_OWNER_PROCESS = struct.Struct("<8xQQ48xQ")  # start, pid namespace and pid of the owner record
JOURNAL_OFFSET = 256
JOURNAL_COLUMNS = 5
JOB_ID = struct.Struct("48s")  # packing cuts a longer id, and fills a shorter one with zeros
JOURNAL_WORDS = JOURNAL_COLUMNS + JOB_ID.size // CELL  # of one entry
NO_SERIES = 0xFFFFFFFFFFFFFFFF  # series of an entry from another generation
MIN_JOURNAL = 64
MIN_CELLS = 512  # one page, so that a few more series need no growth

IDENTITY_SIZE = 16
NO_IDENTITY = bytes(IDENTITY_SIZE)


def _crc(data: bytes) -> bytes:
    return _CRC.pack(zlib.crc32(data))


# ------------------------------------------------------------------ index


class IndexHeader(NamedTuple):
    """The header of the index.

    identity: random, one for each generation; limit: series the directory may hold; created: epoch seconds.
    """

    identity: bytes
    limit: int
    created: float

    def pack(self) -> bytes:
        head = _INDEX_HEADER.pack(INDEX_MAGIC, FORMAT_VERSION, 0, self.identity, self.created, self.limit)
        return head + _crc(head)

    @classmethod
    def unpack(cls, data: bytes) -> "IndexHeader":
        """Parse a header. Raises Damaged, or FormatRefused for an intact header of another version."""
        head = data[: _INDEX_HEADER.size]
        if len(data) < INDEX_HEADER_SIZE or data[len(head) : COMMITTED_OFFSET] != _crc(head):
            raise Damaged("the index has no valid header")
        magic, version, _, identity, created, limit = _INDEX_HEADER.unpack(head)
        if magic != INDEX_MAGIC:
            raise Damaged("the index has no valid header")
        if version != FORMAT_VERSION:
            raise FormatRefused(f"the index has format version {version}; this jobmetrics reads {FORMAT_VERSION}")
        return cls(identity, limit, created)


def pack_committed(length: int) -> bytes:
    """Return the committed word: one aligned 8-byte write that commits all bytes before `length`."""
    return _COMMITTED.pack(length, zlib.crc32(_CRC.pack(length)))


def unpack_committed(header: bytes) -> int:
    """Return the committed length in an index header's bytes. Raises Damaged."""
    length, crc = _COMMITTED.unpack_from(header, COMMITTED_OFFSET)
    if crc != zlib.crc32(_CRC.pack(length)) or length < INDEX_HEADER_SIZE:
        raise Damaged("the index has no valid committed length")
    return int(length)


class Record(NamedTuple):
    """One record of the index. number: the family's number, or the first cell of the series."""

    kind: int
    number: int
    width: int
    body: Any

    def pack(self, identity: bytes, offset: int) -> bytes:
        """Return the record's bytes at this offset. Its CRC covers identity and offset: a copy elsewhere is invalid.

        Raises:
            ValueError: for a record longer than MAX_RECORD bytes.
        """
        payload = json.dumps(self.body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        size = (_RECORD.size + len(payload) + 7) & ~7
        if size > MAX_RECORD:
            raise ValueError(f"a record of {size} bytes is too long, {MAX_RECORD} are allowed")
        payload = payload.ljust(size - _RECORD.size)
        tail = _RECORD.pack(_RECORD_MARK, size, 0, self.kind, 0, self.number, self.width)[12:] + payload
        return _RECORD_HEAD.pack(_RECORD_MARK, size, _record_crc(identity, offset, size, tail)) + tail


_RECORD_HEAD = struct.Struct("<III")
RECORD_HEAD_SIZE = _RECORD_HEAD.size


def _record_crc(identity: bytes, offset: int, size: int, tail: bytes) -> int:
    return zlib.crc32(tail, zlib.crc32(identity + _RECORD_HEAD.pack(offset & 0xFFFFFFFF, size, 0)))


def _record_at(data: bytes, position: int, identity: bytes, base: int) -> tuple[Record, int] | None:
    if position + _RECORD.size > len(data):
        return None
    mark, size, crc, kind, _, number, width = _RECORD.unpack_from(data, position)
    if mark != _RECORD_MARK or size % 8 or not _RECORD.size <= size <= MAX_RECORD or position + size > len(data):
        return None
    if crc != _record_crc(identity, base + position, size, data[position + 12 : position + size]):
        return None
    try:
        body = json.loads(data[position + _RECORD.size : position + size].decode("utf-8", "surrogatepass"))
    except ValueError:  # a good CRC over invalid JSON: another program wrote it
        return None
    return Record(kind, number, width, body), size


def records(data: bytes, identity: bytes, base: int) -> Iterator[tuple[Record | None, int]]:
    """Yield the records in bytes that start at offset `base` of the index, each with its length in bytes.

    Damaged bytes are yielded as None and their length. The search for the next valid record tries every aligned
    offset, so one damaged record costs no other.
    """
    position = 0
    damaged = 0
    while position < len(data):
        found = _record_at(data, position, identity, base)
        if found is None:
            damaged += 8
            position += 8
            continue
        if damaged:
            yield None, damaged
            damaged = 0
        yield found
        position += found[1]
    if damaged:
        yield None, damaged


def cells_behind_damage(damaged: int) -> int:
    """Upper bound on the cells claimed by this number of damaged bytes; they are never reused."""
    return (damaged // _RECORD.size + 1) * MAX_WIDTH


# ------------------------------------------------------------------ slot


class SlotHeader(NamedTuple):
    """The header of a slot.

    journal: entries; identity: of the index that assigns the cells, NO_IDENTITY while the slot is being formatted;
    serial: random, one for each formatting. It distinguishes a copied file from a new one.
    """

    journal: int
    identity: bytes
    serial: bytes = bytes(8)

    @property
    def cells_offset(self) -> int:
        end = JOURNAL_OFFSET + self.journal * JOURNAL_WORDS * CELL
        return (end + PAGE - 1) // PAGE * PAGE

    def pack(self) -> bytes:
        head = _SLOT_HEADER.pack(
            SLOT_MAGIC, FORMAT_VERSION, self.journal, self.cells_offset, self.identity, self.serial
        )
        return head + _crc(head)

    @classmethod
    def unpack(cls, data: bytes) -> "SlotHeader":
        """Parse a header. Raises Damaged, or FormatRefused for an intact header of another version."""
        head = data[: _SLOT_HEADER.size]
        if len(data) < SLOT_HEADER_SIZE or data[len(head) : SLOT_HEADER_SIZE] != _crc(head):
            raise Damaged("the slot has no valid header")
        magic, version, journal, cells_offset, identity, serial = _SLOT_HEADER.unpack(head)
        if magic == SLOT_MAGIC and version != FORMAT_VERSION:
            raise FormatRefused(f"the slot has format version {version}; this jobmetrics reads {FORMAT_VERSION}")
        header = cls(journal, identity, serial)
        if magic != SLOT_MAGIC or not 1 <= journal <= 1 << 20 or cells_offset != header.cells_offset:
            raise Damaged("the slot has no valid header")
        return header


def is_slot_size(size: int, cells_offset: int) -> bool:
    """Whether a slot with this offset of its cells can have this size: the number of cells is a power of two."""
    cells, rest = divmod(size - cells_offset, CELL)
    return rest == 0 and cells >= MIN_CELLS and cells & (cells - 1) == 0


class ProcessIdentity(NamedTuple):
    """The process that holds a slot.

    start: of the process, in clock ticks since boot (0 when unknown); namespace: inode of its pid namespace (0 when
    unknown); capacity: jobs it can run at once.
    """

    pid: int = 0
    start: int = 0
    namespace: int = 0
    system: str = ""
    role: str = ""
    capacity: int = 1


def unpack_owner(data: bytes) -> tuple[int, ProcessIdentity]:
    """Return the lease number, which counts the slot's owners from 1, and the owner of an owner record.

    Raises:
        Damaged: when the record is not complete: the slot was never leased, or its owner died while writing it.
    """
    body = data[: _OWNER.size]
    if len(data) < OWNER_SIZE or data[len(body) : len(body) + _CRC.size] != _crc(body):
        raise Damaged("the slot's owner record is not complete")
    (word,) = _WORD.unpack_from(data, PID_OFFSET - OWNER_OFFSET)
    pid = word & 0xFFFFFFFF
    if not pid or word != _pid_word(pid):
        raise Damaged("the slot's owner record is not complete")
    lease, start, namespace, capacity, _, system, role = _OWNER.unpack(body)
    return lease, ProcessIdentity(
        pid, start, namespace,
        system.rstrip(b"\0").decode("ascii", "replace"), role.rstrip(b"\0").decode("ascii", "replace"), capacity,
    )  # fmt: skip


def write_owner(slot: "memoryview[int]", lease: int, owner: ProcessIdentity) -> None:
    """Write an owner record into a slot's bytes, its CRC and pid last. Names are cut to 16 bytes of ASCII."""
    system, role = owner.system.encode("ascii", "replace"), owner.role.encode("ascii", "replace")
    _OWNER.pack_into(slot, OWNER_OFFSET, lease, owner.start, owner.namespace, owner.capacity, 0, system, role)
    _CRC.pack_into(slot, OWNER_CRC_OFFSET, zlib.crc32(slot[OWNER_OFFSET:OWNER_CRC_OFFSET]))
    _WORD.pack_into(slot, PID_OFFSET, _pid_word(owner.pid))


def _pid_word(pid: int) -> int:
    """Return a pid and its complement: half a write or a flipped bit makes the word invalid."""
    return pid | (pid ^ 0xFFFFFFFF) << 32


def owner_process(head: bytes) -> tuple[int, int, int]:
    """Return pid, start and pid namespace of a slot's owner, as in `ProcessIdentity`; pid 0 for an incomplete record.

    Only the pid is checked, not the CRC.

    Args:
        head: The slot's bytes before its journal; fewer in a file that was cut.
    """
    if len(head) < OWNER_OFFSET + OWNER_SIZE:
        return 0, 0, 0
    start, namespace, word = _OWNER_PROCESS.unpack_from(head, OWNER_OFFSET)
    pid = word & 0xFFFFFFFF
    return (pid if word == _pid_word(pid) else 0), start, namespace


def lease_of(slot: bytes) -> int | None:
    """Return the lease number in a slot's bytes; None when the owner record is not complete."""
    try:
        return unpack_owner(slot[OWNER_OFFSET : OWNER_OFFSET + OWNER_SIZE])[0]
    except Damaged:
        return None


def last_lease(slot: "bytes | memoryview[int]") -> int:
    """Return the lease number in a slot's bytes, from an incomplete owner record too."""
    (raw,) = _WORD.unpack_from(slot, OWNER_OFFSET)
    return int(raw) & 0xFFFFFFFFFFFF


def clear_owner(slot: "memoryview[int]") -> None:
    """Make the owner record incomplete. Readers then ignore the slot's live cells and its journal."""
    slot[OWNER_CRC_OFFSET : OWNER_OFFSET + OWNER_SIZE] = bytes(OWNER_OFFSET + OWNER_SIZE - OWNER_CRC_OFFSET)


# ------------------------------------------------------------------ journal

EMPTY = 0
RUNNING = 1
ENDED = 2
COUNTED = 3  # its owner died while it ran, and another process has counted its end


def pack_state(lease: int, code: int) -> int:
    """Return a state word. With the lease in it, a dead owner's running jobs are not mistaken for its successor's."""
    return ((lease & 0xFFFFFFFFFFFF) << 8) | code


def unpack_state(word: int) -> tuple[int, int]:
    """Return the lease and the code of a state word."""
    return word >> 8, word & 0xFF


def job_id_offset(entries: int, entry: int) -> int:
    """Return the offset in a slot of an entry's job id. entries: of the journal."""
    return JOURNAL_OFFSET + entries * JOURNAL_COLUMNS * CELL + entry * JOB_ID.size


def unpack_job_id(data: bytes | memoryview, offset: int) -> str:
    """Return the job id at an offset, without a character that was cut."""
    raw: bytes = JOB_ID.unpack_from(data, offset)[0]
    return raw.partition(b"\0")[0].decode("utf-8", "ignore")


def execution_hash(system: str, execution_id: str) -> int:
    """Return the 64 bits that identify an execution in the journals."""
    name = f"{system}\0{execution_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
