"""TLS from tls_server_config: a context that reloads changed files, and the check of client certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any

from jobmetrics.errors import SettingsError
from jobmetrics.exporter.web.config import TlsConfig
from jobmetrics.log_throttle import ThrottledLog

_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}


class RenewedContext(ssl.SSLContext):
    """A context that uses renewed certificates for new connections, without a restart.

    Args:
        config: The TLS configuration.
        log: Logs renewed files that cannot be used.

    Raises:
        SettingsError: A file cannot be used.
    """

    def __new__(cls, config: TlsConfig, log: ThrottledLog) -> RenewedContext:  # noqa: ARG004, PYI034 - SSLContext takes a protocol
        """Pass the protocol to SSLContext."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, config: TlsConfig, log: ThrottledLog) -> None:
        self._config = config
        self._log = log
        self._stamps = self._look()
        self._current = _context(config)

    def wrap_bio(self, *given: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection. Changed files that cannot be used are logged, and the old certificates stay active."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._current = _context(self._config)
            except SettingsError as error:
                self._log.warning("tls", "jobmetrics: the old certificates stay active: %s", error)
        return self._current.wrap_bio(*given, **options)

    def _look(self) -> tuple[tuple[int, int] | None, ...]:
        config = self._config
        return tuple(_stamp(path) for path in (config.cert_file, config.key_file, config.client_ca_file) if path)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - at each connection
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _context(config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[config.min_version]
    context.maximum_version = _VERSIONS[config.max_version]
    if config.prefer_server_cipher_suites:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if config.openssl_ciphers:
        context.set_ciphers(":".join(config.openssl_ciphers))
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password function, OpenSSL asks for the key's password on the terminal.
        context.load_cert_chain(config.cert_file, config.key_file, password=lambda: "")
    except OSError as error:
        raise _unusable("cert_file or key_file", f"{config.cert_file}, {config.key_file}", error) from None
    if config.client_ca_file:
        try:
            context.load_verify_locations(config.client_ca_file)
        except OSError as error:
            raise _unusable("client_ca_file", config.client_ca_file, error) from None
    context.verify_mode = _CLIENT_AUTH[config.client_auth_type]
    context.sslobject_class = _named_clients(config)
    return context


def _unusable(key: str, path: str, error: OSError) -> SettingsError:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "no certificate in it").lower().replace("_", " ")
    else:
        reason = error.strerror or str(error)
    return SettingsError(f"--web-config: tls_server_config.{key} ({path}) cannot be used: {reason}")


def _named_clients(config: TlsConfig) -> type[ssl.SSLObject]:
    """Return a class of connections that fail the handshake unless client_allowed_sans contains the client."""

    class NamedClient(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            if not allows(config, self.getpeercert() or {}):
                raise ssl.SSLCertVerificationError("client_allowed_sans does not contain this client")

    return NamedClient


def allows(config: TlsConfig, certificate: Mapping[str, Any]) -> bool:
    """Whether client_allowed_sans contains the client. Without that list, each certificate of the CA is allowed."""
    if not config.client_allowed_sans or not certificate:
        return not config.client_allowed_sans or config.client_auth_type != "RequireAndVerifyClientCert"
    names = {name for _, name in certificate.get("subjectAltName", ())}
    return not names.isdisjoint(config.client_allowed_sans)
