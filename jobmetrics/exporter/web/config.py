"""The file of --web-config, in the format of Prometheus' exporter-toolkit.

Source: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. A key of the format that
is not supported here is an error, like an unknown key, so that no protection is missing silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marshmallow import Schema, ValidationError, fields, pre_load, validate, validates_schema

from jobmetrics.errors import SettingsError

_HASH = re.compile(r"\$2[abxy]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}\Z")
_HEADERS = (
    "Content-Security-Policy", "Strict-Transport-Security", "X-Content-Type-Options", "X-Frame-Options",
    "X-XSS-Protection",
)  # fmt: skip

# OpenSSL's names of the TLS 1.2 cipher suites, by Go's names. As in Go, those of TLS 1.3 are accepted without effect.
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
    """A checked tls_server_config, with the same names and values. Files are absolute paths."""

    cert_file: str
    key_file: str
    client_ca_file: str | None = None
    client_auth_type: str = "NoClientCert"
    client_allowed_sans: tuple[str, ...] = ()
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    cipher_suites: tuple[str, ...] = ()
    prefer_server_cipher_suites: bool = True

    @property
    def openssl_ciphers(self) -> list[str]:
        """OpenSSL's names of the TLS 1.2 cipher suites; empty for OpenSSL's default."""
        return [name for name in map(_CIPHERS.__getitem__, self.cipher_suites) if name]


@dataclass(frozen=True)
class WebConfig:
    """The checked content of the file.

    Attributes:
        tls: None for plain HTTP.
        users: bcrypt hashes by name; None without passwords.
        headers: Headers that are added to each answer.
    """

    tls: TlsConfig | None = None
    users: Mapping[str, bytes] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


def load(path: str) -> WebConfig:
    """Read the file.

    Raises:
        SettingsError: The file is not valid. The message names the file and the key, never a value.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"--web-config {path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:  # the message may quote the file
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"--web-config {path}: is not valid YAML{where}") from None
    try:
        found = _File().load(content if content is not None else {})
    except ValidationError as error:
        # An unknown key comes first: it is often a misspelt required key.
        message = min(_messages(error.messages_dict), key=lambda text: not text.startswith("unknown key"))
        raise SettingsError(f"--web-config {path}: {message}") from None
    base = Path(path).absolute().parent
    tls = found.get("tls_server_config")
    users = {name: stored.encode() for name, stored in found.get("basic_auth_users", {}).items()}
    headers = found.get("http_server_config", {}).get("headers", {})
    return WebConfig(_tls(tls, base) if tls is not None else None, users or None, headers)


def _tls(found: Mapping[str, Any], base: Path) -> TlsConfig:
    files = {key: str(base / found[key]) for key in ("cert_file", "key_file", "client_ca_file") if key in found}
    lists = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
    return TlsConfig(**{**found, **files, **lists})


def _messages(found: Mapping[Any, Any], *path: str) -> Iterator[str]:
    """Yield each message, with %s replaced by the path of its key."""
    for key, below in found.items():
        where = path if key == "_schema" else (*path, str(key))  # marshmallow's key for the mapping itself
        if isinstance(below, dict):
            yield from _messages(below, *where)
        else:
            for message in below:
                yield message.replace("%s", ".".join(where) or "the file")


def _refusal(takes: str) -> str:
    return f"%s is not allowed; it takes {takes}"


def _text(*, required: bool = False) -> fields.String:
    refusal = _refusal("a string")
    return fields.String(
        required=required,
        validate=validate.And(validate.Length(min=1, error=refusal), validate.Predicate("isprintable", error=refusal)),
        error_messages={"invalid": refusal},
    )


def _choice(names: Sequence[str]) -> fields.String:
    refusal = _refusal(", ".join(names))
    return fields.String(validate=validate.OneOf(names, error=refusal), error_messages={"invalid": refusal})


def _check_flag(value: Any) -> None:
    if not isinstance(value, bool):  # fields.Boolean accepts 1
        raise ValidationError(_refusal("true or false"))


def _list(each: fields.Field[Any]) -> fields.List[Any]:
    return fields.List(each, error_messages={"invalid": _refusal("a list")})


class _Section(Schema):
    """A mapping in the file. A key without a value counts as missing."""

    error_messages = {"type": "%s has to be a mapping of keys to values"}  # noqa: RUF012 - marshmallow's way

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error_messages["unknown"] = f"unknown key %s; allowed are {', '.join(self.fields)}"
        for each in self.fields.values():
            each.error_messages["required"] = "%s is missing"

    @pre_load
    def _leave_out_nulls(self, data: Any, **_: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class _Tls(_Section):
    cert_file = _text(required=True)
    key_file = _text(required=True)
    client_ca_file = _text()
    client_auth_type = _choice(["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"])
    client_allowed_sans = _list(_text())
    min_version = _choice(["TLS12", "TLS13"])
    max_version = _choice(["TLS12", "TLS13"])
    cipher_suites = _list(_choice(list(_CIPHERS)))
    prefer_server_cipher_suites = fields.Raw(validate=_check_flag)

    @validates_schema
    def _check_together(self, data: Mapping[str, Any], **_: Any) -> None:
        asks = data.get("client_auth_type", "NoClientCert") != "NoClientCert"
        if asks and "client_ca_file" not in data:
            raise ValidationError("%s is missing, which client_auth_type needs", "client_ca_file")
        if not asks and ("client_ca_file" in data or data.get("client_allowed_sans")):
            reason = "without which no client certificate is requested"
            raise ValidationError(f"%s is missing, {reason}", "client_auth_type")
        if data.get("min_version", "TLS12") > data.get("max_version", "TLS13"):
            raise ValidationError("%s is above max_version", "min_version")


class _Http(_Section):
    http2 = fields.Raw(validate=_check_flag)  # accepted without effect: only HTTP/1.1 is served
    headers = fields.Nested(_Section.from_dict({name: _text() for name in _HEADERS}, name="_Headers"))


def _check_users(users: Mapping[Any, Any]) -> None:
    for name, stored in users.items():
        if not isinstance(name, str):
            raise ValidationError("%s has a name that is not a string")
        if ":" in name:  # without a space after it, the password is in the name
            raise ValidationError("%s has a name with a colon, which no client can send")
        if not isinstance(stored, str) or not _HASH.match(stored):
            raise ValidationError(
                _refusal("a bcrypt hash, for example from htpasswd -nBC 10").replace("%s", f"%s.{name}")
            )


class _File(_Section):
    tls_server_config = fields.Nested(_Tls)
    http_server_config = fields.Nested(_Http)
    basic_auth_users = fields.Dict(
        validate=_check_users, error_messages={"invalid": "%s has to be a mapping of keys to values"}
    )
