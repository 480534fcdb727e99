"""The files that the jobs work on: copies from the standard library, some of them damaged on purpose."""

from __future__ import annotations

import gzip
import hashlib
import json
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

from jobmetrics.demo.errors import DemoError

SAMPLE = 40
MINIMUM_BYTES, MAXIMUM_BYTES = 2_000, 60_000
_FILE = "materials.json"


@dataclass(frozen=True)
class Parcel:
    """A file to deliver, and the SHA-256 that its receiver was told."""

    path: str
    digest: str


@dataclass(frozen=True)
class Materials:
    """Absolute paths. Each list holds at least one file."""

    sources: list[str]
    damaged_sources: list[str]
    archives: list[str]
    damaged_archives: list[str]
    parcels: list[Parcel]
    damaged_parcels: list[Parcel]


def standard_library(limit: int = SAMPLE) -> list[Path]:
    """Modules of the running Python's standard library, spread over the alphabet."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path
        for path in sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py"))
        if path.parent.name != "site-packages" and MINIMUM_BYTES <= path.stat().st_size <= MAXIMUM_BYTES
    ]
    if not found:
        raise DemoError(f"the demo works on the standard library's source files, and {folder} has none")
    step = max(1, len(found) // limit)
    return found[::step][:limit]


def prepare(home: Path, originals: list[Path]) -> Materials:
    """Copy `originals` under `home`, damage some copies, and write the list of all down."""
    folder = home / "materials"
    folder.mkdir()
    made = Materials([], [], [], [], [], [])
    for number, original in enumerate(originals):
        content = original.read_bytes()
        name = f"{number:02d}-{original.name}"
        made.sources.append(_write(folder / name, content))
        packed = gzip.compress(content)
        made.archives.append(_write(folder / f"{name}.gz", packed))
        made.parcels.append(Parcel(made.sources[-1], hashlib.sha256(content).hexdigest()))
        if number % 4:
            continue
        cut = folder / f"{name}.cut.gz"
        made.damaged_archives.append(_write(cut, packed[: len(packed) // 2]))
        # Bad syntax and bytes that are no UTF-8, in turn.
        damage = b"\ndef broken(:\n" if len(made.damaged_sources) % 2 == 0 else b"\n# \xff\xfe\n"
        made.damaged_sources.append(_write(folder / f"damaged-{name}", content + damage))
        spoilt = _write(folder / f"spoilt-{name}", b"#" + content[:-1])
        made.damaged_parcels.append(Parcel(spoilt, made.parcels[-1].digest))
    (home / _FILE).write_text(json.dumps(asdict(made)), encoding="utf-8")
    return made


def load(home: Path) -> Materials:
    """What `prepare` wrote down."""
    values = json.loads((home / _FILE).read_text(encoding="utf-8"))
    for kind in ("parcels", "damaged_parcels"):
        values[kind] = [Parcel(**parcel) for parcel in values[kind]]
    return Materials(**values)


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)
