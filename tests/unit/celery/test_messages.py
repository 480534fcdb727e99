from __future__ import annotations

from copy import deepcopy
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, current_app
from kombu import Exchange, Queue

from jobmetrics.celery.messages import PUBLISHED_AT, queue_name, ready_at

STAMP = 1_700_000_000.25
LATER = STAMP + 60


class App:
    """A Celery app as far as its queues go; counts how often it is asked."""

    def __init__(self, **queues: tuple[str, str]) -> None:
        self.asked = 0
        self._queues = {
            name: SimpleNamespace(exchange=SimpleNamespace(name=exchange), routing_key=key)
            for name, (exchange, key) in queues.items()
        }

    @property
    def amqp(self) -> Any:
        self.asked += 1
        return SimpleNamespace(queues=self._queues)


def request(
    stamp: object = repr(STAMP), eta: object = None, *, redelivered: bool = False, headers: object = None
) -> Any:
    return SimpleNamespace(
        delivery_info={"redelivered": redelivered}, headers=headers, eta=eta, **{PUBLISHED_AT: stamp}
    )  # fmt: skip


def iso(seconds: float, offset: int = 0) -> str:
    return datetime.fromtimestamp(seconds, timezone(timedelta(hours=offset))).isoformat()


# ------------------------------------------------------------------ queue


def test_direct_delivery_names_the_queue_itself() -> None:
    app = App()
    assert queue_name(app, "", "images") == "images"
    assert app.asked == 0


@pytest.mark.parametrize("levels", ["0." * 28, "0." * 25 + "1.0.1."])
def test_a_delay_by_the_broker_is_not_part_of_the_queue(levels: str) -> None:
    app = App(images=("media", "pictures"))
    assert queue_name(app, "celery_delayed_27", levels + "pictures") == "images"
    assert queue_name(app, "celery_delayed_27", levels + "gone") == "gone"


def test_no_exchange_is_direct_delivery() -> None:
    assert queue_name(App(), None, "images") == "images"


def test_message_without_a_route_has_an_unknown_queue() -> None:
    assert queue_name(App(), None, None) == "unknown"


def test_exchange_and_routing_key_are_looked_up_in_the_apps_queues() -> None:
    app = App(images=("media", "image.#"), sounds=("media", "sound.#"))
    assert queue_name(app, "media", "sound.#") == "sounds"


def test_same_routing_key_of_another_exchange_is_another_queue() -> None:
    app = App(wrong=("other", "key"), right=("media", "key"))
    assert queue_name(app, "media", "key") == "right"


def test_route_that_no_queue_has_shows_its_routing_key() -> None:
    assert queue_name(App(), "media", "image.png") == "image.png"


def test_route_without_a_key_shows_its_exchange() -> None:
    assert queue_name(App(), "media", None) == "media"


def test_app_is_asked_once_a_route() -> None:
    app = App(images=("media", "key"))
    for _ in range(3):
        queue_name(app, "media", "key")
    assert app.asked == 1


def test_hostile_routing_keys_do_not_fill_the_memory() -> None:
    app = App(images=("media", "key"))
    queue_name(app, "media", "key")
    before = deepcopy(vars(app))
    for number in range(2000):
        queue_name(app, "media", str(number))
    assert {**vars(app), "asked": 0} == {**before, "asked": 0}


def test_two_apps_may_have_one_route_and_different_queues() -> None:
    first, second = App(images=("media", "key")), App(sounds=("media", "key"))
    assert [queue_name(app, "media", "key") for app in (first, second, first)] == ["images", "sounds", "images"]


def test_the_current_app_remembers_its_own_routes() -> None:
    before, found = current_app._get_current_object(), []
    for name in ("images", "sounds"):
        app = Celery(name, set_as_current=True)
        app.conf.task_queues = [Queue(name, Exchange("media"), routing_key="key")]
        found.append(queue_name(current_app, "media", "key"))
    before.set_current()
    assert found == ["images", "sounds"]


def test_queue_without_an_exchange_is_passed_over() -> None:
    app = App(images=("media", "key"))
    app._queues = {"bare": SimpleNamespace(exchange=None, routing_key="key"), **app._queues}
    assert queue_name(app, "media", "key") == "images"


# ------------------------------------------------------------------ when it could have run


def test_job_could_have_run_when_it_was_published() -> None:
    assert ready_at(request()) == STAMP


def test_eta_counts_if_it_is_later() -> None:
    assert ready_at(request(eta=iso(LATER))) == LATER


def test_eta_before_the_publish_does_not_count() -> None:
    assert ready_at(request(eta=iso(STAMP - 60))) == STAMP


def test_eta_with_an_offset_is_converted() -> None:
    assert ready_at(request(eta=iso(LATER, 5))) == LATER


def test_eta_without_an_offset_is_utc() -> None:
    assert ready_at(request(eta=iso(LATER).replace("+00:00", ""))) == LATER


def test_eta_in_zulu_time_is_utc() -> None:
    assert ready_at(request(eta=iso(LATER).replace("+00:00", "Z"))) == LATER


def test_eta_may_be_a_datetime() -> None:
    assert ready_at(request(eta=datetime.fromtimestamp(LATER, timezone.utc))) == LATER


@pytest.mark.parametrize("eta", ["soon", "", 0, {"at": 1}, "0001-01-01T00:00:00+23:59"])
def test_invalid_eta_does_not_count(eta: object) -> None:
    assert ready_at(request(eta=eta)) == STAMP


def test_message_without_a_timestamp_is_unknown() -> None:
    assert ready_at(request(None)) is None


def test_unknown_publish_with_an_eta_is_still_unknown() -> None:
    assert ready_at(request(None, iso(LATER))) is None


def test_timestamp_may_be_in_the_headers() -> None:
    assert ready_at(request(None, headers={PUBLISHED_AT: repr(STAMP)})) == STAMP


def test_delivery_info_that_is_not_a_mapping_is_not_a_redelivery() -> None:
    asked = request()
    asked.delivery_info = None
    assert ready_at(asked) == STAMP


@pytest.mark.parametrize("stamp", ["", "yesterday", [], {}, "nan", "inf", "-inf", float("nan"), 10**400])
def test_invalid_timestamp_is_unknown(stamp: object) -> None:
    assert ready_at(request(stamp)) is None
