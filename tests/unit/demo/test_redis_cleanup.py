from __future__ import annotations

import pytest

from demo.redis_cleanup import celery_url, hide


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pass@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://user:p%2Fw@host/0", "redis://user:***@host/0"),
        ("redis://:p/w#x@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://:p@ss@host/0", "redis://:***@host/0"),
        ("redis://password@host/0", "redis://***@host/0"),
        ("redis://host/0?password=s3cret&db=1", "redis://host/0?password=***&db=1"),
        ("unix://:pass@/run/redis.sock?db=1", "unix://:***@/run/redis.sock?db=1"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert hide(f"trying {url} again", url) == f"trying {shown} again"


def test_a_password_is_not_shown_in_its_decoded_form() -> None:
    assert hide("AUTH p/w failed", "redis://:p%2Fw@host/0") == "AUTH *** failed"


def test_without_a_url_nothing_is_hidden() -> None:
    assert hide("all is well", None) == "all is well"


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://:p@host:1/2", "redis://:p@host:1/2"),
        ("rediss://host/0", "rediss://host/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix://u:p@/run/redis.sock?db=3", "redis+socket://u:p@/run/redis.sock?virtual_host=3"),
    ],
)
def test_sockets_are_spelled_as_kombu_does(url: str, broker: str) -> None:
    assert celery_url(url) == broker
