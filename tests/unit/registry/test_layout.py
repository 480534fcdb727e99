from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmetrics.errors import Damaged, FormatRefused
from jobmetrics.registry import layout
from jobmetrics.registry.layout import IndexHeader, ProcessIdentity, Record, SlotHeader

IDENTITY = bytes(range(16))
HEADER = IndexHeader(IDENTITY, 10_000, 1_700_000_000.25)
LEASE = 7
OWNER = ProcessIdentity(4711, 123_456, 4_026_531_836, "celery", "child", 4)
RECORD = Record(layout.SERIES_RECORD, 123, 19, {"family": 3, "values": ["celery", "app.größe", "high"]})

identities = st.binary(min_size=16, max_size=16)
words = st.integers(0, 2**64 - 1)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=16)
json_texts = st.text(st.characters(), max_size=20)
bodies = st.dictionaries(json_texts, json_texts | st.integers() | st.lists(json_texts, max_size=3), max_size=4)
made_records = st.builds(Record, st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 256), bodies)


def packed(owner: ProcessIdentity, lease: int = LEASE) -> bytes:
    """The bytes of the owner record."""
    slot = bytearray(layout.JOURNAL_OFFSET)
    layout.write_owner(memoryview(slot), lease, owner)
    return bytes(slot[layout.OWNER_OFFSET : layout.OWNER_OFFSET + layout.OWNER_SIZE])


def flips(data: bytes) -> list[bytes]:
    """The bytes with each single bit flipped in turn."""
    flipped = []
    for bit in range(len(data) * 8):
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(copy))
    return flipped


def found(data: bytes, identity: bytes, base: int) -> list[Record | int]:
    """The records in these bytes, and the lengths of the damaged stretches between them."""
    return [size if record is None else record for record, size in layout.records(data, identity, base)]


def detected(read: object, data: bytes) -> bool:
    try:
        read(data)  # type: ignore[operator]
    except (Damaged, FormatRefused):
        return True
    return False


def read_index_header(data: bytes) -> tuple[IndexHeader, int]:
    return IndexHeader.unpack(data), layout.unpack_committed(data)


def index_header(length: int = 4096) -> bytes:
    return HEADER.pack() + layout.pack_committed(length)


def of_version(version: int, header: IndexHeader | SlotHeader) -> bytes:
    """A valid header of another version: its CRC is right."""
    ours = layout.FORMAT_VERSION
    layout.FORMAT_VERSION = version
    try:
        return header.pack()
    finally:
        layout.FORMAT_VERSION = ours


# ------------------------------------------------------------------ index header


@given(identities, words, st.floats(allow_nan=False), st.integers(64, 2**32 - 1))
def test_index_header_comes_back(identity: bytes, limit: int, created: float, length: int) -> None:
    header = IndexHeader(identity, limit, created)
    assert read_index_header(header.pack() + layout.pack_committed(length)) == (header, length)


def test_index_header_fills_the_space_before_the_committed_word() -> None:
    assert len(HEADER.pack()) == layout.COMMITTED_OFFSET
    assert len(index_header()) == layout.INDEX_HEADER_SIZE


def test_committed_word_is_one_aligned_word() -> None:
    assert layout.COMMITTED_OFFSET % 8 == 0
    assert len(layout.pack_committed(64)) == 8


def test_every_flipped_bit_of_an_index_header_is_found() -> None:
    passed = [bit for bit, data in enumerate(flips(index_header())) if not detected(read_index_header, data)]
    assert passed == []


def test_every_cut_of_an_index_header_is_found() -> None:
    passed = [length for length in range(64) if not detected(IndexHeader.unpack, index_header()[:length])]
    assert passed == []


def test_index_of_another_version_is_refused_with_both_versions() -> None:
    with pytest.raises(FormatRefused, match=r"^the index has format version 9; this jobmetrics reads 3$"):
        IndexHeader.unpack(of_version(9, HEADER) + layout.pack_committed(64))


def test_a_committed_length_inside_the_header_is_damaged() -> None:
    with pytest.raises(Damaged):
        layout.unpack_committed(HEADER.pack() + layout.pack_committed(63))


def test_a_zeroed_index_header_is_damaged() -> None:
    with pytest.raises(Damaged):
        IndexHeader.unpack(bytes(64))


def test_a_slot_header_is_not_an_index_header() -> None:
    with pytest.raises(Damaged):
        IndexHeader.unpack(SlotHeader(64, IDENTITY).pack())


# ------------------------------------------------------------------ records


@given(made_records, identities, st.integers(8, 2**20).map(lambda n: n * 8))
def test_record_comes_back(record: Record, identity: bytes, offset: int) -> None:
    data = record.pack(identity, offset)
    parsed = found(data, identity, offset)
    assert parsed == [record._replace(body=json.loads(json.dumps(record.body)))]


@given(made_records)
def test_record_is_aligned(record: Record) -> None:
    assert len(record.pack(IDENTITY, 64)) % 8 == 0


def test_every_flipped_bit_of_a_record_is_found() -> None:
    data = RECORD.pack(IDENTITY, 64)
    for bit, flipped in enumerate(flips(data)):
        assert found(flipped, IDENTITY, 64) == [len(data)], f"bit {bit}"


def test_every_cut_of_a_record_is_found() -> None:
    data = RECORD.pack(IDENTITY, 64)
    for length in range(8, len(data), 8):
        assert found(data[:length], IDENTITY, 64) == [length]


@given(st.data(), st.lists(made_records, min_size=3, max_size=6))
def test_a_bad_record_loses_only_itself(data: st.DataObject, several: list[Record]) -> None:
    packed, offset = [], 64
    for record in several:
        packed.append(record.pack(IDENTITY, offset))
        offset += len(packed[-1])
    bad = data.draw(st.integers(0, len(several) - 1))
    bit = data.draw(st.integers(0, len(packed[bad]) * 8 - 1))
    damaged = bytearray(packed[bad])
    damaged[bit // 8] ^= 1 << bit % 8
    parsed = found(b"".join([*packed[:bad], bytes(damaged), *packed[bad + 1 :]]), IDENTITY, 64)
    assert parsed == [*several[:bad], len(damaged), *several[bad + 1 :]]


def test_a_record_copied_to_another_offset_is_damaged() -> None:
    data = RECORD.pack(IDENTITY, 64)
    assert found(data, IDENTITY, 72) == [len(data)]


def test_a_record_of_another_index_is_damaged() -> None:
    data = RECORD.pack(IDENTITY, 64)
    assert found(data, bytes(16), 64) == [len(data)]


def test_neighbouring_damage_is_reported_as_one_stretch() -> None:
    assert found(bytes(80), IDENTITY, 64) == [80]


def test_empty_bytes_have_no_record() -> None:
    assert found(b"", IDENTITY, 64) == []


def test_a_label_value_that_is_not_valid_unicode_is_preserved() -> None:
    record = Record(layout.SERIES_RECORD, 0, 1, {"values": ["\udcff\0"]})
    assert found(record.pack(IDENTITY, 64), IDENTITY, 64) == [record]


def test_a_record_that_no_reader_accepts_is_not_written() -> None:
    with pytest.raises(ValueError, match="record"):
        Record(layout.FAMILY_RECORD, 0, 1, {"help": "x" * layout.MAX_RECORD}).pack(IDENTITY, 64)


@given(st.lists(st.integers(1, layout.MAX_WIDTH), min_size=1, max_size=10))
def test_damage_reserves_at_least_the_cells_it_had(widths: list[int]) -> None:
    data, offset, cell = b"", 64, 0
    for width in widths:
        data += Record(layout.SERIES_RECORD, cell, width, {}).pack(IDENTITY, offset + len(data))
        cell += width
    assert layout.cells_behind_damage(len(data)) >= cell


# ------------------------------------------------------------------ slot


@given(st.integers(1, 1 << 20), identities)
def test_slot_header_comes_back(journal: int, identity: bytes) -> None:
    header = SlotHeader(journal, identity)
    assert SlotHeader.unpack(header.pack()) == header


@given(st.integers(1, 1 << 20))
def test_cells_begin_on_a_page_behind_the_journal(journal: int) -> None:
    offset = SlotHeader(journal, IDENTITY).cells_offset
    end = layout.JOURNAL_OFFSET + journal * layout.JOURNAL_WORDS * layout.CELL
    assert offset % layout.PAGE == 0
    assert end <= offset < end + layout.PAGE


def test_slot_header_ends_where_the_owner_record_begins() -> None:
    assert len(SlotHeader(64, IDENTITY).pack()) == layout.OWNER_OFFSET


def test_owner_record_ends_before_the_journal() -> None:
    assert layout.OWNER_OFFSET + layout.OWNER_SIZE <= layout.JOURNAL_OFFSET
    assert layout.JOURNAL_OFFSET % 8 == 0


def test_every_flipped_bit_of_a_slot_header_is_found() -> None:
    passed = [
        bit for bit, data in enumerate(flips(SlotHeader(64, IDENTITY).pack())) if not detected(SlotHeader.unpack, data)
    ]
    assert passed == []


def test_every_cut_of_a_slot_header_is_found() -> None:
    data = SlotHeader(64, IDENTITY).pack()
    assert [length for length in range(64) if not detected(SlotHeader.unpack, data[:length])] == []


def test_slot_of_another_version_is_refused_with_both_versions() -> None:
    with pytest.raises(FormatRefused, match=r"^the slot has format version 9; this jobmetrics reads 3$"):
        SlotHeader.unpack(of_version(9, SlotHeader(64, IDENTITY)))


@pytest.mark.parametrize("journal", [0, (1 << 20) + 1])
def test_a_slot_with_an_impossible_journal_is_damaged(journal: int) -> None:
    with pytest.raises(Damaged):
        SlotHeader.unpack(SlotHeader(journal, IDENTITY).pack())


def test_an_index_header_is_not_a_slot_header() -> None:
    with pytest.raises(Damaged):
        SlotHeader.unpack(index_header())


@given(words, st.integers(1, 2**32 - 1), words, words, names, names, st.integers(0, 2**32 - 1))
def test_owner_comes_back(
    lease: int, pid: int, start: int, namespace: int, system: str, role: str, capacity: int
) -> None:
    owner = ProcessIdentity(pid, start, namespace, system, role, capacity)
    assert layout.unpack_owner(packed(owner, lease)) == (lease, owner)


def test_every_flipped_bit_of_an_owner_record_is_found() -> None:
    assert [bit for bit, data in enumerate(flips(packed(OWNER))) if not detected(layout.unpack_owner, data)] == []


def test_owner_record_without_a_pid_has_no_lease() -> None:
    assert layout.lease_of(bytes(64) + packed(OWNER._replace(pid=0))) is None


def test_every_cut_of_an_owner_record_is_found() -> None:
    data = packed(OWNER)
    assert [length for length in range(len(data)) if not detected(layout.unpack_owner, data[:length])] == []


def test_slot_that_was_never_leased_has_no_owner() -> None:
    with pytest.raises(Damaged):
        layout.unpack_owner(bytes(layout.OWNER_SIZE))


def test_owner_names_too_long_are_cut() -> None:
    _, owner = layout.unpack_owner(packed(OWNER._replace(role="r" * 40)))
    assert owner.role == "r" * 16


def test_lease_of_a_complete_owner_record() -> None:
    assert layout.lease_of(bytes(64) + packed(OWNER)) == LEASE


def test_cleared_owner_record_has_no_lease() -> None:
    slot = bytearray(bytes(64) + packed(OWNER))
    layout.clear_owner(memoryview(slot))
    assert layout.lease_of(bytes(slot)) is None


def test_last_lease_is_known_from_a_cleared_owner_record() -> None:
    slot = bytearray(bytes(64) + packed(OWNER))
    layout.clear_owner(memoryview(slot))
    assert layout.last_lease(bytes(slot)) == LEASE


def test_owner_record_is_written_between_header_and_journal_only() -> None:
    slot = bytearray(b"\xff" * 512)
    layout.write_owner(memoryview(slot), LEASE, OWNER)
    end = layout.OWNER_OFFSET + layout.OWNER_SIZE
    assert slot[: layout.OWNER_OFFSET] + slot[end:] == b"\xff" * (512 - layout.OWNER_SIZE)


def test_never_leased_slot_has_last_lease_zero() -> None:
    assert layout.last_lease(bytes(256)) == 0


# ------------------------------------------------------------------ journal


@given(st.integers(0, 2**48 - 1), st.sampled_from([layout.EMPTY, layout.RUNNING, layout.ENDED]))
def test_state_word_comes_back_and_fits_a_word(lease: int, code: int) -> None:
    word = layout.pack_state(lease, code)
    assert layout.unpack_state(word) == (lease, code)
    assert 0 <= word < 2**64


def test_zeroed_state_word_is_empty() -> None:
    assert layout.unpack_state(0) == (0, layout.EMPTY)


@given(st.text(st.characters(), max_size=50))
def test_execution_hash_fits_a_journal_word(execution_id: str) -> None:
    assert 0 <= layout.execution_hash("rq", execution_id) < 2**64


def test_execution_hash_is_the_same_in_every_process() -> None:
    assert layout.execution_hash("celery", "a") == 2090903660482651467


def test_same_name_in_two_systems_is_two_executions() -> None:
    assert layout.execution_hash("celery", "a") != layout.execution_hash("rq", "a")
