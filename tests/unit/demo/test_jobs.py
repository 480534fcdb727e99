from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from jobmetrics.demo import jobs, materials, plan


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> materials.Materials:
    home = tmp_path_factory.mktemp("demo")
    made = materials.prepare(home, materials.standard_library(limit=12))
    assert materials.load(home) == made
    return made


def test_whole_files_are_worked_on(stock: materials.Materials, tmp_path: Path) -> None:
    for source, archive in zip(stock.sources, stock.archives, strict=True):
        content = Path(source).read_bytes()
        assert jobs.hash_file(source) == hashlib.sha256(content).hexdigest()
        assert jobs.decompress_file(archive) == len(content)
        assert jobs.parse_source(source) > 0
        target = tmp_path / "packed.gz"
        assert jobs.compress_file(source, str(target)) == target.stat().st_size
        assert gzip.decompress(target.read_bytes()) == content
    assert list(tmp_path.iterdir()) == [target]


def test_damaged_archives_and_sources_fail_for_a_true_reason(stock: materials.Materials) -> None:
    for archive in stock.damaged_archives:
        with pytest.raises(EOFError):
            jobs.decompress_file(archive)
    found = set()
    for source in stock.damaged_sources:
        with pytest.raises((SyntaxError, UnicodeDecodeError)) as caught:
            jobs.parse_source(source)
        found.add(caught.type)
    assert found == {SyntaxError, UnicodeDecodeError}


def test_a_delivery_is_awaited_checked_and_taken_in(stock: materials.Materials, tmp_path: Path) -> None:
    parcel, spoilt = stock.parcels[0], stock.damaged_parcels[0]
    target = tmp_path / "delivery"
    with pytest.raises(jobs.NotDeliveredError):
        jobs.verify_delivery(str(target), parcel.digest)
    size = jobs.deliver_file(parcel.path, str(target))
    whole = target.read_bytes()
    assert len(whole) == size
    target.write_bytes(whole[: size // 2])
    with pytest.raises(jobs.ChecksumMismatchError):
        jobs.verify_delivery(str(target), parcel.digest)
    target.write_bytes(whole)
    assert jobs.verify_delivery(str(target), parcel.digest) == size
    assert not target.exists()
    jobs.deliver_file(spoilt.path, str(target))
    with pytest.raises(jobs.ChecksumMismatchError):
        jobs.verify_delivery(str(target), spoilt.digest)


def test_four_rounds_hold_every_kind_of_damage(stock: materials.Materials, tmp_path: Path) -> None:
    orders = plan.rounds(stock, tmp_path / "work")
    first = [next(orders) for _ in range(4)]
    used = {argument for orders_of_round in first for order in orders_of_round for argument in order.arguments}
    assert used & set(stock.damaged_archives)
    assert used & set(stock.damaged_sources)
    assert used & {parcel.path for parcel in stock.damaged_parcels}
    assert {order.job for order in first[0]} == {work.__name__ for work in jobs.ALL}


def test_a_verification_comes_before_its_delivery(stock: materials.Materials, tmp_path: Path) -> None:
    names = [order.job for order in next(plan.rounds(stock, tmp_path / "work"))]
    assert names.index("verify_delivery") < names.index("deliver_file")


def test_deliveries_never_share_a_target(stock: materials.Materials, tmp_path: Path) -> None:
    orders = plan.rounds(stock, tmp_path / "work")
    targets = [order.arguments[1] for _ in range(50) for order in next(orders) if order.job == "deliver_file"]
    assert len(set(targets)) == 50
