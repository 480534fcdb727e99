"""The cost of password checks, and which results are remembered."""

from __future__ import annotations

import base64
from typing import Any

import bcrypt
import pytest

from jobmetrics.exporter.web.auth import REMEMBERED, Passwords, credentials


def hashed(password: bytes, rounds: int = 4) -> bytes:
    return bcrypt.hashpw(password, bcrypt.gensalt(rounds))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds of each bcrypt check."""
    made: list[int] = []
    real = bcrypt.checkpw

    def counted(password: bytes, stored: bytes) -> Any:
        made.append(int(stored[4:6]))
        return real(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    return made


def test_a_name_that_does_not_exist_costs_the_same_check(checks: list[int]) -> None:
    passwords = Passwords({"a": hashed(b"x", 6)})
    assert not passwords.check((b"a", b"wrong"))
    assert not passwords.check((b"nobody", b"x"))
    assert not passwords.check((b"", b""))
    assert checks == [6, 6, 6]


def test_a_cheaper_hash_costs_as_much_as_the_costliest(checks: list[int]) -> None:
    passwords = Passwords({"a": hashed(b"x", 4), "b": hashed(b"x", 7)})
    costs = []
    for name in (b"a", b"b", b"nobody"):
        checks.clear()
        assert not passwords.check((name, b"wrong"))
        costs.append(sum(2**rounds for rounds in checks))
    assert costs == [2**7, 2**7, 2**7]


def test_a_valid_password_is_remembered_and_a_wrong_one_is_not() -> None:
    passwords = Passwords({"a": hashed(b"x"), "b": hashed(b"y")})
    assert not passwords.known((b"a", b"x"))
    assert passwords.check((b"a", b"x"))
    assert passwords.known((b"a", b"x"))
    assert not passwords.check((b"a", b"y"))
    for other in [(b"a", b"y"), (b"b", b"x"), (b"", b"ax"), (b"ax", b""), (b"nobody", b"x")]:
        assert not passwords.known(other)


def test_remembered_passwords_are_hashed_and_bounded() -> None:
    passwords = Passwords({"a": hashed(b"x" * 72)})
    for number in range(REMEMBERED + 20):  # bcrypt reads only 72 bytes: all of these are valid
        assert passwords.check((b"a", b"x" * 72 + str(number).encode()))
    assert len(passwords._right) == REMEMBERED
    assert all(len(proof) == 32 for proof in passwords._right)


@pytest.mark.parametrize("password", [b"", b"\0", b"x" * 73, b"\xff" * 100])
def test_any_bytes_may_be_sent(password: bytes) -> None:
    assert Passwords({"a": hashed(b"x")}).check((b"a", password)) is False


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Basic " + base64.b64encode(b"a:b:c").decode(), (b"a", b"b:c")),
        ("basic  " + base64.b64encode(b"a:").decode(), (b"a", b"")),
        ("Basic " + base64.b64encode(b"ab").decode(), None),
        ("Basic ???", None),
        ("Basic \xff", None),
        ("Bearer YTpi", None),
        ("", None),
    ],
)
def test_credentials(header: str, expected: tuple[bytes, bytes] | None) -> None:
    assert credentials(header) == expected
