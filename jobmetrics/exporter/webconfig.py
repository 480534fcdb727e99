"""The file of --web-config, in the format of Prometheus' exporter-toolkit.

Source: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What is known of the
format and cannot be done here is an error like an unknown key: a protection that is silently missing is none.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobmetrics.errors import SettingsError

_HASH = re.compile(r"\$2[abxy]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}\Z")

_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_HEADERS = (
    "Content-Security-Policy", "Strict-Transport-Security", "X-Content-Type-Options", "X-Frame-Options",
    "X-XSS-Protection",
)  # fmt: skip

# Go's names of what TLS 1.2 offers, as OpenSSL calls them. Neither lets one choose for TLS 1.3.
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_AES_128_GCM_SHA256": "",
    "TLS_AES_256_GCM_SHA384": "",
    "TLS_CHACHA20_POLY1305_SHA256": "",
}


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """tls_server_config: files as absolute paths. ciphers: of TLS 1.2, by OpenSSL's names; empty: its own choice."""

    cert_file: str
    key_file: str
    client_ca_file: str | None = None
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    allowed_sans: tuple[str, ...] = ()
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True


@dataclass(frozen=True)
class WebConfig:
    """Who may talk to the exporter, and how. users: bcrypt hashes by name; None: no password is asked for."""

    tls: TlsConfig | None = None
    users: Mapping[str, bytes] | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = ()


def load(path: str) -> WebConfig:
    """The file, checked.

    Raises:
        SettingsError: one line naming the file and the key, and never a value that may be secret.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"--web-config {path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:  # what they say may quote the file
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"--web-config {path}: is no YAML{where}") from None
    try:
        return _config(_Table("", content if content is not None else {}), Path(path).absolute().parent)
    except _Wrong as error:
        raise SettingsError(f"--web-config {path}: {error}") from None


class _Wrong(Exception):
    """What is wrong with which key."""


class _Table:
    """A mapping of the file, whose keys are taken one by one; what is left at the end is unknown."""

    def __init__(self, name: str, content: Any) -> None:
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise _Wrong(f"{name or 'the file'} has to be a mapping of keys to values")
        self._prefix = f"{name}." if name else ""
        self._content = dict(content)
        self._known: list[str] = []

    def take(self, key: str, read: Callable[[Any], Any], default: Any = None) -> Any:
        self._known.append(key)
        value = self._content.pop(key, None)
        if value is None:
            return default
        try:
            return read(value)
        except ValueError as error:
            raise _Wrong(f"{self._prefix}{key} is not allowed; it takes {error}") from None

    def items(self) -> dict[str, Any]:
        """All of it, for a mapping whose keys are the operator's own."""
        return self._content

    def end(self) -> None:
        for key in self._content:
            raise _Wrong(f"unknown key {self._prefix}{key}; allowed are {', '.join(self._known)}")


def _config(file: _Table, base: Path) -> WebConfig:
    tls = file.take("tls_server_config", lambda value: _tls(_Table("tls_server_config", value), base))
    headers = file.take("http_server_config", lambda value: _headers(_Table("http_server_config", value)), ())
    users = file.take("basic_auth_users", lambda value: _users(_Table("basic_auth_users", value)))
    file.end()
    return WebConfig(tls, users, headers)


def _headers(table: _Table) -> tuple[tuple[str, str], ...]:
    table.take("http2", _flag)  # a client is free to speak HTTP/1.1, which is what is served
    headers = table.take("headers", lambda value: _Table("http_server_config.headers", value))
    table.end()
    if headers is None:
        return ()
    found = [(name, headers.take(name, _text)) for name in _HEADERS]
    headers.end()
    return tuple((name, value) for name, value in found if value is not None)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of texts")
    return tuple(_text(each) for each in value)


def _one_of(choices: Mapping[str, Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(", ".join(choices))
        return choices[value]

    return read


def _ciphers(value: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(_one_of(_CIPHERS), _texts(value))))


def _tls(table: _Table, base: Path) -> TlsConfig:
    def file(value: Any) -> str:
        return str(base / _text(value))

    cert, key = table.take("cert_file", file), table.take("key_file", file)
    found = TlsConfig(
        cert_file=cert or "",
        key_file=key or "",
        client_ca_file=table.take("client_ca_file", file),
        client_auth=table.take("client_auth_type", _one_of(_CLIENT_AUTH), ssl.CERT_NONE),
        allowed_sans=table.take("client_allowed_sans", _texts, ()),
        min_version=table.take("min_version", _one_of(_VERSIONS), ssl.TLSVersion.TLSv1_2),
        max_version=table.take("max_version", _one_of(_VERSIONS), ssl.TLSVersion.TLSv1_3),
        ciphers=table.take("cipher_suites", _ciphers, ()),
        prefer_server_ciphers=table.take("prefer_server_cipher_suites", _flag, True),
    )
    table.end()
    for name, value in (("cert_file", cert), ("key_file", key)):
        if value is None:
            raise _Wrong(f"tls_server_config.{name} is missing")
    if found.client_auth != ssl.CERT_NONE and found.client_ca_file is None:
        raise _Wrong("tls_server_config.client_ca_file is missing, which client_auth_type needs")
    if found.client_auth == ssl.CERT_NONE and (found.client_ca_file or found.allowed_sans):
        raise _Wrong("tls_server_config.client_auth_type is missing, without which no client certificate is asked for")
    if found.min_version > found.max_version:
        raise _Wrong("tls_server_config.min_version is above max_version")
    return found


def _users(table: _Table) -> Mapping[str, bytes] | None:
    users = {}
    for name, value in table.items().items():
        if not isinstance(value, str) or not _HASH.match(value):
            raise _Wrong(
                f"basic_auth_users.{name} is not allowed; it takes a bcrypt hash, as htpasswd -nBC 10 makes it"
            )
        if ":" in name:
            raise _Wrong("basic_auth_users has a name with a colon, which no client can send")
        users[name] = value.encode()
    return users or None
