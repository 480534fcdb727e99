"""Print the slowest tests of some reports of pytest's --junitxml: python tools/slowest.py FILE..."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

SHOWN = 10


def slowest(paths: list[str]) -> list[tuple[float, str]]:
    """Seconds and name of the slowest tests of all reports."""
    cases = [case for path in paths for case in ET.parse(path).iter("testcase")]  # noqa: S314 - our own reports
    timed = [(float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}") for case in cases]
    return sorted(timed, reverse=True)[:SHOWN]


if __name__ == "__main__":
    for seconds, name in slowest(sys.argv[1:]):
        print(f"{seconds:8.1f} s  {name}")
