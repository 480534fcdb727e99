"""Each invariant's mechanism is removed by a small patch; the test named for it must then fail.

A test that passes without the mechanism proves nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HANG_SECONDS = 900.0

PASSED, FAILED = 0, 1  # pytest's exit statuses; any other is an error of the set-up


@dataclass(frozen=True)
class Mutation:
    """A patch, what it removes, and the test that must fail; needs_root: without root that test is skipped.

    test: below tests/multiprocess, or below tests if it names a folder.
    full: run by make test-all, because make test does not run what the patch changes.
    """

    patch: str
    removes: str
    test: str
    needs_root: bool = False
    full: bool = False

    @property
    def path(self) -> str:
        """The named test, for pytest."""
        file = self.test.partition("::")[0]
        return f"tests/{self.test}" if "/" in file else f"tests/multiprocess/{self.test}"


MUTATIONS = [
    Mutation(
        "bounded",
        "free slots are looked for before a file is made",
        "test_bounded.py::test_many_processes_that_start_at_once_share_no_slot",
    ),
    Mutation(
        "nothing_lost",
        "who reports a death asks the journals of living slots too",
        "unit/test_recorder.py::test_a_running_execution_reported_abandoned_is_not_counted",
    ),
    Mutation(
        "monotone",
        "the last good row stands in for a slot that cannot be read",
        "test_monotone.py::test_a_slot_that_cannot_be_read_for_a_while",
    ),
    Mutation(
        "live_gauges",
        "live gauges of a free slot are ignored",
        "test_live_gauges.py::test_a_killed_process_takes_its_gauges_and_executions_with_it",
    ),
    Mutation(
        "fork_safe",
        "a forked child closes the descriptors of its parent's locks",
        "test_fork_safe.py::test_the_idle_child_of_a_killed_parent_does_not_keep_its_lease",
    ),
    Mutation(
        "readers_only_read",
        "slots are opened for reading only",
        "test_readers_only_read.py::test_a_reader_makes_only_reading_system_calls",
    ),
    Mutation(
        "damage",
        "the checksum of a slot's header",
        "test_damage.py::test_every_flip_in_the_headers_is_detected",
    ),
    Mutation(
        "disk_full",
        "space is reserved before it is mapped",
        "test_disk_full.py::test_growth_with_few_pages_free",
        needs_root=True,
    ),
    Mutation(
        "capped",
        "series beyond the limit go to the overflow series",
        "test_capped.py::test_series_made_before_the_cap_was_reached_still_count",
    ),
    Mutation(
        "versioned",
        "an index of another format version is refused",
        "test_versioned.py::test_an_index_of_another_version_is_refused_and_left_alone",
    ),
    Mutation(
        "private",
        "files are opened without following links",
        "test_private.py::test_a_planted_link_is_never_followed",
    ),
    Mutation(
        "strangers_directory",
        "readers refuse the directory of another user",
        "test_private.py::test_another_users_directory_is_not_read_without_permission",
        needs_root=True,
    ),
    Mutation(
        "few_descriptors",
        "a reader of many slots closes what it has read",
        "test_many_slots.py::test_a_reader_of_many_slots_keeps_few_descriptors",
    ),
    Mutation(
        "sized_by_need",
        "a reader copies no more of a slot than the index has cells",
        "test_many_slots.py::test_a_sparse_slot_of_64_gigabytes_costs_no_memory",
    ),
    Mutation(
        "held_default",
        "a default directory that another user holds is passed over",
        "test_private.py::test_a_default_directory_that_another_user_made_first_is_passed_over",
        needs_root=True,
    ),
    Mutation(
        "irregular_histogram",
        "a histogram with a sum that can fall has no type",
        "unit/exporter/test_metrics_page.py::test_a_histogram_with_a_sum_that_can_fall_has_no_type",
    ),
    Mutation(
        "colon_in_a_name",
        "OpenMetrics keeps the colons in names",
        "unit/exporter/test_metrics_page.py::test_a_colon_in_a_name_stays_in_both_formats",
    ),
    Mutation(
        "empty_name",
        "an empty metric name is refused",
        "unit/instruments/test_adhoc.py::test_misuse_raises_in_tests",
    ),
    Mutation(
        "invalid_family",
        "a family that cannot be shown is left out",
        "unit/exporter/test_metrics_page.py::test_a_family_that_fails_in_the_middle_is_left_out_and_counted",
    ),
    Mutation(
        "index_lock",
        "a lock is waited for at most 50 ms",
        "test_index_lock.py::test_a_stopped_lock_holder_delays_no_job_by_more_than_50_ms",
    ),
    Mutation(
        "newest",
        "an older declaration never becomes the newest again",
        "test_redeclared.py::test_other_buckets_win_once_and_stay",
    ),
    Mutation(
        "turns",
        "clients take turns for password checks",
        "e2e/test_exporter_access.py::test_a_valid_password_is_accepted_after_a_restart_while_others_guess",
    ),
    Mutation(
        "places",
        "credentials that were sent back keep their place",
        "unit/exporter/web/test_auth_turns.py::test_a_client_sent_back_comes_before_later_clients",
    ),
    Mutation(
        "cheap_hashes",
        "a cheap hash costs as much as the costliest",
        "unit/exporter/web/test_auth_passwords.py::test_a_cheaper_hash_costs_as_much_as_the_costliest",
    ),
    Mutation(
        "terminal",
        "control characters are shown as escapes",
        "e2e/test_commands.py::test_top_shows_control_characters_as_escapes",
    ),
    Mutation(
        "dropped_without_jobs",
        "what is dropped where no job runs is shown where the process ends",
        "unit/registry/write/test_current.py::test_dropped_updates_are_shown_when_a_process_ends",
    ),
    Mutation(
        "max_queues",
        "queues beyond the cap share a series",
        "integration/test_queues_rq.py::test_queues_beyond_the_cap_share_a_series",
    ),
    Mutation(
        "long_message",
        "a long message is not read",
        "integration/test_queues_celery.py::test_a_long_message_is_not_read",
    ),
    Mutation(
        "wrong_type",
        "a key of another type hides only its queue",
        "integration/test_queues_rq.py::test_a_key_of_another_type_hides_only_its_queue",
    ),
    Mutation(
        "superseded",
        "series of earlier declarations do not count towards the limit",
        "unit/registry/test_index.py::test_earlier_declarations_leave_space_for_the_newest",
    ),
    Mutation(
        "application",
        "each application has its own default directory",
        "unit/test_settings.py::test_each_application_has_its_own_default_dir",
    ),
    Mutation(
        "connections",
        "connections leave descriptors for the slots",
        "e2e/test_exporter_hostile.py::test_idle_connections_leave_descriptors_for_the_slots",
    ),
    Mutation(
        "copies",
        "copies of a slot file are counted once",
        "test_damage.py::test_a_copy_of_a_slot_is_counted_once",
    ),
    Mutation(
        "zeroed",
        "zeroed cells count on from what they had",
        "test_damage.py::test_zeroed_cells_of_a_living_slot_go_on_counting",
    ),
    Mutation(
        "erased",
        "what was reset of zeroed cells stays so",
        "unit/registry/read/test_snapshot.py::test_zeroed_cells_do_not_restore_erased_series",
    ),
    Mutation(
        "present_values",
        "a gauge's present value goes along to another slot",
        "unit/registry/write/test_writer.py::test_present_value_follows_to_a_slot_with_a_longer_journal",
    ),
    Mutation(
        "nested",
        "counts in nested earlier buckets are shown in the newest",
        "test_redeclared.py::test_nested_buckets_are_counted_together",
    ),
    Mutation(
        "no_system_call",
        "a bound counter asks the system nothing",
        "test_no_system_call.py::test_a_bound_record_makes_no_system_call",
    ),
    Mutation(
        "errors_once",
        "a forked child starts with empty error counts",
        "test_errors_once.py::test_errors_of_a_parent_are_not_counted_again_by_its_children",
    ),
    Mutation(
        "short_of_descriptors",
        "a new file that cannot be leased ends the search",
        "test_bounded.py::test_a_process_short_of_descriptors_makes_at_most_one_file",
        needs_root=True,
    ),
    Mutation(
        "pauses",
        "pauses are per cause, and no child inherits them",
        "test_waiting.py::test_children_of_a_process_that_found_no_room_use_the_free_slot",
        needs_root=True,
    ),
    Mutation(
        "lost_with_child",
        "what ends with a forked child is counted by its parent",
        "test_waiting.py::test_updates_that_children_lose_to_a_full_disk_are_counted_by_their_parent",
        needs_root=True,
    ),
    Mutation(
        "smaller_slot",
        "on a full disk a lease takes a slot as large as it is",
        "test_waiting.py::test_new_processes_count_known_series_when_the_index_has_grown_on_a_full_disk",
        needs_root=True,
    ),
    Mutation(
        "retried_together",
        "what waits for the index lock is tried once a second",
        "test_waiting.py::test_updates_that_wait_for_the_index_lock_are_retried_together_once_a_second",
    ),
    Mutation(
        "settles_at_exit",
        "a process that ends records what waits in its memory",
        "test_waiting.py::test_a_process_that_ends_waits_for_the_index_lock",
    ),
    Mutation(
        "noticed",
        "processes that run no jobs look at the directory",
        "test_noticed.py::test_a_process_without_jobs_follows_its_directory",
    ),
    Mutation(
        "living_owner",
        "a slot is not leased while its last owner runs",
        "test_noticed.py::test_a_daemon_that_closed_its_descriptors_shares_its_slot_with_no_process",
    ),
    Mutation(
        "clock_set_back",
        "readers leave timestamps in the future out",
        "test_clock_set_back.py::test_a_success_of_another_process_counts",
    ),
    Mutation(
        "fork_in_c",
        "a fork without hooks is noticed at the next job",
        "test_fork_safe.py::test_a_fork_in_c_is_noticed_by_processes_without_jobs",
    ),
    Mutation(
        "open_systems",
        "the name of a registered job system stays apart beyond the cap",
        "e2e/test_integrations.py::test_the_name_is_kept_beyond_the_cap",
    ),
    Mutation(
        "exit_of_work_horse",
        "the worker looks at how its work-horse exited",
        "integration/test_rq_truth.py::test_a_work_horse_killed_after_its_end_was_recorded_counts_once_and_is_lost",
        full=True,
    ),
    Mutation(
        "killed_greenlet",
        "a greenlet that Celery killed stays open until Celery gives the reason",
        "unit/celery/test_tasks.py::test_a_killed_greenlet_waits_for_its_reason_while_its_result_is_stored",
    ),
    Mutation(
        "found_without_lock",
        "what another process placed in the index is found while its lock is held",
        "unit/registry/test_index.py::test_series_that_another_process_placed_is_found_while_the_lock_is_held",
    ),
    Mutation(
        "lost_at_end",
        "a process that ends without the lock counts what it loses",
        "test_waiting.py::test_a_process_that_ends_without_the_lock_counts_what_it_loses",
    ),
]

# Set by make test-all: it and make test run the named tests themselves.
NAMED_TESTS_RUN = os.environ.get("NAMED_TESTS_RUN") == "1"

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]

each = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.patch)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package to be patched."""
    shutil.copytree(ROOT / "jobmetrics", tmp_path / "jobmetrics", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def apply(mutation: Mutation, copy: Path, *options: str) -> None:
    arguments = ["git", "apply", "--verbose", *options, str(HERE / f"{mutation.patch}.patch")]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    done = subprocess.run(arguments, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{mutation.patch}.patch does not fit the package: write it again\n{done.stderr}"


def environment_of(copy: Path) -> dict[str, str]:
    """Python finds the copy of the package first, and measures no coverage of it.

    Without PYTHONSAFEPATH it would find the package in the working directory.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST_"))}
    path = os.pathsep.join([str(copy), str(ROOT)])
    return {**kept, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def run_named_test(mutation: Mutation, copy: Path) -> subprocess.CompletedProcess[str]:
    """Run the test against the copy, in a separate pytest."""
    where = [sys.executable, "-c", "import jobmetrics; print(jobmetrics.__file__)"]
    environment = environment_of(copy)
    used = subprocess.run(where, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(used).is_relative_to(copy), "the copy is tested"
    # Otherwise pytest puts the root of the repository, which has the package, before the copy.
    arguments = [*PYTEST, "--import-mode=append", "--exitfirst", "--tb=line", "-m", "not long", mutation.path]
    return subprocess.run(
        [*arguments, f"--basetemp={copy / 'tmp'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.timeout(2 * HANG_SECONDS)
@each
def test_the_named_test_fails_without_the_mechanism(mutation: Mutation, copy: Path) -> None:
    if mutation.needs_root and os.geteuid() != 0:
        pytest.skip("the named test needs root")
    if not NAMED_TESTS_RUN:
        whole = run_named_test(mutation, copy)
        assert whole.returncode == PASSED, f"it does not pass without the patch:\n{whole.stdout}\n{whole.stderr}"
    apply(mutation, copy)
    mutated = run_named_test(mutation, copy)
    if mutated.returncode == PASSED and " passed" not in mutated.stdout:
        pytest.skip(f"the named test is skipped here: {mutated.stdout}")
    assert (mutated.returncode, " failed" in mutated.stdout) == (FAILED, True), (
        f"{mutation.test} does not notice what was removed: {mutation.removes}\n{mutated.stdout}\n{mutated.stderr}"
    )


def test_every_patch_is_used() -> None:
    assert sorted(path.stem for path in HERE.glob("*.patch")) == sorted(mutation.patch for mutation in MUTATIONS)


def test_every_patch_applies_and_make_test_runs_every_named_test(copy: Path) -> None:
    """Tests marked full are excepted: make test-all runs them."""
    stale = []
    for mutation in MUTATIONS:
        try:
            apply(mutation, copy, "--check")
        except AssertionError:
            stale.append(mutation.patch)
    assert stale == [], "write these patches again"
    for full in (False, True):
        named = [mutation.path for mutation in MUTATIONS if mutation.full == full]
        tier = ["-m", "full"] if full else []
        done = subprocess.run(
            [*PYTEST, "--collect-only", *tier, *named],
            cwd=ROOT, env=environment_of(copy), capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
        assert not named or {path.partition("[")[0] for path in named} <= found, done.stdout
