"""basic_auth_users: names and bcrypt hashes, checked so that scrapes stay fast and strangers learn nothing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping

import bcrypt

REMEMBERED = 128  # proofs of passwords that were right
_SIGNIFICANT = 72  # bytes of a password that bcrypt looks at


class Passwords:
    """Checks credentials. users: bcrypt hashes by name.

    bcrypt is slow on purpose, so what was right is remembered, as a keyed digest that is worth nothing outside
    this process. Wrong credentials are never remembered, so guesses cannot fill the memory. Each wrong one costs as
    much as the costliest hash, also if its own hash is cheaper or its name does not exist.
    """

    def __init__(self, users: Mapping[str, bytes]) -> None:
        self._users = {name.encode(): stored for name, stored in users.items()}
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        costs = [_rounds(stored) for stored in users.values()]
        # Matches no password: checked for names that do not exist, and to make up for a cheaper hash.
        self._nobody = {rounds: _some_hash(rounds) for rounds in range(min(costs), max(costs) + 1)}

    def known(self, credentials: tuple[bytes, bytes]) -> bool:
        """Whether these were right before; at once."""
        proof = self.proof(credentials)
        if proof not in self._right:
            return False
        self._right.move_to_end(proof)
        return True

    def check(self, credentials: tuple[bytes, bytes]) -> bool:
        """Whether they are right. Takes as long as bcrypt takes; may run in a thread, one at a time."""
        name, password = credentials
        stored = self._users.get(name)
        most = max(self._nobody)
        right = _is(password, stored or self._nobody[most])
        if not right or stored is None:
            for rounds in range(_rounds(stored), most) if stored else ():
                _is(password, self._nobody[rounds])  # each round doubles: together what is missing to the most
            return False
        self._right[self.proof(credentials)] = None
        if len(self._right) > REMEMBERED:
            self._right.popitem(last=False)
        return True

    def proof(self, credentials: tuple[bytes, bytes]) -> bytes:
        """A digest of credentials that is worth nothing outside this process."""
        name, password = credentials
        parts = (name, self._users.get(name, b""), password)
        text = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, text, hashlib.sha256)


def _rounds(stored: bytes) -> int:
    return int(stored[4:6])


def _is(password: bytes, stored: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_SIGNIFICANT], stored)
    except ValueError:  # a byte that bcrypt does not take
        return False


def _some_hash(rounds: int) -> bytes:
    """A hash of these rounds that nothing was hashed to: made without the time that hashing takes."""
    salt = bcrypt.gensalt(rounds)
    return salt + base64.b64encode(secrets.token_bytes(23)).replace(b"+", b".").rstrip(b"=")[:31]


def credentials(authorization: str) -> tuple[bytes, bytes] | None:
    """Name and password of an Authorization header, None when it is no Basic one (RFC 7617)."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(text.strip().encode("latin-1"), validate=True)
    except (binascii.Error, ValueError):
        return None
    name, colon, password = decoded.partition(b":")
    return (name, password) if colon else None
