"""A certificate authority for a test, made with the openssl command."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import servers


@dataclass(frozen=True)
class Certificate:
    cert: Path
    key: Path


class Authority:
    """Issues certificates for 127.0.0.1 and localhost into a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self.cert = directory / f"{name}.pem"
        self._key = directory / f"{name}-key.pem"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", str(self._key), "-out", str(self.cert),
        )  # fmt: skip

    def issue(self, name: str, host: str = "localhost") -> Certificate:
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}-key.pem")
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", str(self.cert), "-CAkey", str(self._key), "-keyout", str(made.key), "-out", str(made.cert),
        )  # fmt: skip
        return made

    def client_context(self, certificate: Certificate | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.cert))
        if certificate is not None:
            context.load_cert_chain(certificate.cert, certificate.key)
        return context

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run([servers.program("openssl"), *arguments], check=True, capture_output=True)
