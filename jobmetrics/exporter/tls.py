"""TLS as tls_server_config says: a context that follows its files, and which clients may come in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any

from jobmetrics.errors import SettingsError
from jobmetrics.exporter.sparingly import Sparingly
from jobmetrics.exporter.webconfig import TlsConfig


class TlsContext:
    """The context in force. Certificates that were renewed are taken without a restart."""

    def __init__(self, config: TlsConfig, log: Sparingly) -> None:
        """Raises SettingsError when the files are not what TLS needs."""
        self._config = config
        self._log = log
        self._stamps = self._look()
        self._context = _context(config)

    def __call__(self) -> ssl.SSLContext:
        """The context for the next connection; a change that cannot be used is logged, and the old one stays."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = _context(self._config)
            except SettingsError as error:
                self._log.warning("tls", "jobmetrics: the certificates stay as they were: %s", error)
        return self._context

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
    context.minimum_version = config.min_version
    context.maximum_version = config.max_version
    if config.prefer_server_ciphers:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if config.ciphers:
        context.set_ciphers(":".join(config.ciphers))
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password function OpenSSL would ask for one on the terminal.
        context.load_cert_chain(config.cert_file, config.key_file, password=lambda: "")
    except OSError as error:
        raise _unusable("cert_file or key_file", f"{config.cert_file}, {config.key_file}", error) from None
    if config.client_ca_file:
        try:
            context.load_verify_locations(config.client_ca_file)
        except OSError as error:
            raise _unusable("client_ca_file", config.client_ca_file, error) from None
    context.verify_mode = config.client_auth
    return context


def _unusable(key: str, path: str, error: OSError) -> SettingsError:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "no certificate in it").lower().replace("_", " ")
    else:
        reason = error.strerror or str(error)
    return SettingsError(f"--web-config: tls_server_config.{key} ({path}) cannot be used: {reason}")


def allows(config: TlsConfig, certificate: Mapping[str, Any]) -> bool:
    """Whether client_allowed_sans names the client; without that list, everyone whom the CA vouches for."""
    if not config.allowed_sans or not certificate:
        return not config.allowed_sans or config.client_auth != ssl.CERT_REQUIRED
    names = {name for _, name in certificate.get("subjectAltName", ())}
    return not names.isdisjoint(config.allowed_sans)
