"""The work of the examples on files, without a job system."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobmetrics.testing import read_sample, temporary_registry
from shop import files, orders, work


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with temporary_registry():
        yield


def test_orders_are_added_up_by_country(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("order,country,price\n1,AT,10.50\n2,DE,4\n3,AT,1\n")
    assert work.import_orders(str(path)) == 3
    assert read_sample("shop_revenue_euros_total", {"country": "AT"}) == 11.5
    assert read_sample("shop_revenue_euros_total", {"country": "DE"}) == 4.0


def test_a_damaged_file_fails_and_adds_nothing(tmp_path: Path) -> None:
    path = files.write_orders(tmp_path / "orders.csv", damaged=True)
    with pytest.raises(ValueError, match="n/a"):
        work.import_orders(str(path))
    assert [read_sample("shop_revenue_euros_total", {"country": each}) for each in files.COUNTRIES] == [None] * 4


def test_copies_archives_and_deliveries(tmp_path: Path) -> None:
    source = files.write_orders(tmp_path / "orders.csv")
    content = source.read_bytes()
    packed, copy = tmp_path / "orders.gz", tmp_path / "copy.csv"
    assert work.compress_file(str(source), str(packed)) == packed.stat().st_size
    assert gzip.decompress(packed.read_bytes()) == content
    assert work.check_archive(str(packed)) == len(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(work.NotDeliveredError):
        work.verify_delivery(str(copy), digest)
    assert work.deliver_file(str(source), str(copy)) == len(content)
    assert work.verify_delivery(str(copy), digest) == len(content)
    copy.write_bytes(content[:-1])
    with pytest.raises(work.ChecksumMismatchError):
        work.verify_delivery(str(copy), digest)


def test_an_archive_cut_short_fails(tmp_path: Path) -> None:
    cut = files.write_archive(tmp_path / "old.gz", b"orders" * 100, damaged=True)
    with pytest.raises(EOFError):
        work.check_archive(str(cut))


def test_only_old_files_are_cleaned_up(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    assert work.clean_up(str(tmp_path), 3600) == 1
    assert list(tmp_path.iterdir()) == [new]


def outcome(order: orders.Order) -> str:
    """The result of a job on files, if its delivery is over when it is verified."""
    try:
        getattr(work, order.job)(*order.arguments)
    except (ValueError, EOFError, work.ChecksumMismatchError) as error:
        return type(error).__name__
    return "success"


def test_kinds_of_damage_alternate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "UPLOAD_PAUSE_SECONDS", 0)
    failed = []
    for batch in itertools.islice(orders.rounds(tmp_path, damage_every=2), 6):
        assert [order.job for order in batch].index("verify_delivery") == 0
        found = {order.job: outcome(order) for order in reversed(batch)}
        failed.append({job: error for job, error in found.items() if error != "success"})
    assert failed == [
        {},
        {"import_orders": "ValueError"},
        {},
        {"check_archive": "EOFError"},
        {},
        {"verify_delivery": "ChecksumMismatchError"},
    ]


def test_failing_jobs_are_added_to_each_round(tmp_path: Path) -> None:
    quiet, troubled = next(orders.rounds(tmp_path)), next(orders.rounds(tmp_path, 20, orders.TROUBLES, 7.0))
    more = troubled[len(quiet) :]
    assert [order.job for order in more] == ["import_orders", "call_partner", "verify_delivery", "exhaust_memory"]
    assert outcome(more[0]) == "ValueError"
    assert more[1].arguments == (7.0,)
    with pytest.raises(work.NotDeliveredError):
        work.verify_delivery(*map(str, more[2].arguments))


def test_files_are_in_the_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DIR", str(tmp_path / "some" / "where"))
    assert files.folder() == tmp_path / "some" / "where"
    assert files.folder().is_dir()
