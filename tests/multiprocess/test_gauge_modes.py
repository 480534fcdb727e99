"""Max and min gauges across processes: the present value of each process, and the last value of ended processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.multiprocess.support import Worker, children, in_child, serve, slot_files
from tests.support import readings


class Extremes(Worker):
    """Set both gauges."""

    def set(self, value: float) -> None:
        for gauges in (self.highest, self.lowest):
            gauges.at(("x",)).set(value)

    def add(self, amount: float) -> None:
        for gauges in (self.highest, self.lowest):
            gauges.at(("x",)).inc(amount)


def shown(registry_dir: Path) -> tuple[float, float]:
    highest, lowest = (readings.samples(registry_dir, name)["x",].value for name in ("highest", "lowest"))
    return highest, lowest


def test_present_values_of_living_processes_count_and_go_both_ways(registry_dir: Path) -> None:
    with children([lambda pipe: serve(Extremes(registry_dir), pipe)] * 2) as (one, other):
        one.ask("set", 3.0)
        one.ask("set", 1.0)
        assert shown(registry_dir) == (1.0, 1.0)
        other.ask("set", -4.0)
        assert shown(registry_dir) == (1.0, -4.0)
        one.ask("add", 5.0)
        other.ask("add", 4.0)
        assert shown(registry_dir) == (6.0, 0.0)
        other.ask("set", 2.0)
        assert shown(registry_dir) == (6.0, 2.0)


def test_the_last_value_of_an_ended_process_is_kept_by_later_owners_of_its_slot(registry_dir: Path) -> None:
    for values in ((9.0, 5.0), (2.0, 3.0), (4.0,)):

        def set_all(values: tuple[float, ...] = values) -> None:
            one = Extremes(registry_dir)
            for value in values:
                one.set(value)

        in_child(set_all)
    assert len(slot_files(registry_dir)) == 1
    assert shown(registry_dir) == (5.0, 3.0)  # not 9 and 2: no process ended with these


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_value_of_0_counts(registry_dir: Path, value: float) -> None:
    with children([lambda pipe: serve(Extremes(registry_dir), pipe)] * 2) as (one, other):
        one.ask("set", value)
        other.ask("set", -1.0)
        assert shown(registry_dir) == (0.0, -1.0)
        other.ask("set", 1.0)
        assert shown(registry_dir) == (1.0, 0.0)
