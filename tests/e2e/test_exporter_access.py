"""--web-config: TLS, client certificates and passwords in the format of Prometheus' exporter-toolkit."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import ssl
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import psutil
import pytest

from tests.e2e.certificates import Authority
from tests.e2e.exporters import JOB, LIMIT, complaint, recording, run, run_inside, running
from tests.support import servers
from tests.support.readings import until

PASSWORD = "correct-horse-battery"
SLOW_ROUNDS = 12


def hashed(password: str, rounds: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds)).decode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "exporter.log"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def web_config(path: Path, text: str) -> str:
    file = path / "web.yml"
    file.write_text(text)
    return str(file)


# ------------------------------------------------------------------ passwords


def test_every_page_requires_a_valid_password(registry_dir: Path, tmp_path: Path, log: Path) -> None:
    config = web_config(tmp_path, f"basic_auth_users:\n  prometheus: {hashed(PASSWORD)}\n")
    with running(registry_dir, log, "--web-config", config) as exporter:
        for path in ("/", "/metrics", "/healthz", "/readyz", "/nothing"):
            exporter.credentials = None
            status, headers, body = exporter.ask(path)
            assert (status, body) == (401, "unauthorized\n")
            assert headers["Www-Authenticate"].startswith("Basic realm=")
        for wrong in [("prometheus", "wrong"), ("nobody", PASSWORD), ("", ""), ("prometheus", ""), ("x" * 500, "y")]:
            exporter.credentials = wrong
            assert exporter.ask("/metrics")[0] == 401
        exporter.credentials = ("prometheus", PASSWORD)
        assert exporter.ask("/metrics")[0] == 200
        assert exporter.ask("/metrics")[0] == 200
        exporter.credentials = ("prometheus", PASSWORD + "x")
        assert exporter.ask("/metrics")[0] == 401
        assert PASSWORD not in exporter.log
        assert PASSWORD not in " ".join(psutil.Process(exporter.process.pid).cmdline())


def test_an_invalid_authorization_header_is_refused(registry_dir: Path, tmp_path: Path, log: Path) -> None:
    config = web_config(tmp_path, f"basic_auth_users: {{prometheus: '{hashed(PASSWORD)}'}}\n")
    with running(registry_dir, log, "--web-config", config) as exporter:
        for authorization in ["", "Basic", "Basic !!!", "Bearer x", "Basic " + "A" * 4000, "\xff"]:
            connection = exporter.connect()
            connection.request("GET", "/metrics", headers={"Authorization": authorization.encode("latin-1")})
            assert connection.getresponse().status == 401, authorization
            connection.close()
        assert "Traceback" not in exporter.log


@pytest.mark.full
@pytest.mark.serial
def test_scrapes_with_a_known_password_stay_fast_while_others_guess(
    registry_dir: Path, tmp_path: Path, log: Path
) -> None:
    config = web_config(tmp_path, f"basic_auth_users: {{prometheus: '{hashed(PASSWORD, SLOW_ROUNDS)}'}}\n")
    with running(registry_dir, log, "--web-config", config) as exporter, ThreadPoolExecutor(30) as pool:
        exporter.credentials = ("prometheus", PASSWORD)
        start = time.monotonic()
        assert exporter.ask("/metrics")[0] == 200
        first = time.monotonic() - start

        def guess(number: int) -> int:
            token = base64.b64encode(f"prometheus:{number}".encode()).decode()
            connection = exporter.connect()
            connection.request("GET", "/metrics", headers={"Authorization": f"Basic {token}"})
            status = connection.getresponse().status
            connection.close()
            return status

        guesses = [pool.submit(guess, number) for number in range(60)]
        until(lambda: any(each.done() for each in guesses), "the first guess to be refused")
        start = time.monotonic()
        for _ in range(5):
            assert exporter.ask("/metrics")[0] == 200
        assert (time.monotonic() - start) / 5 < 1.0, f"the first scrape, with a checked password, took {first:.2f} s"
        assert {each.result(LIMIT) for each in guesses} <= {401, 503}


@pytest.mark.parametrize("strangers", ["127.0.0.2", "127.0.0.1"], ids=["elsewhere", "behind the same address"])
def test_a_valid_password_is_accepted_after_a_restart_while_others_guess(
    strangers: str, registry_dir: Path, tmp_path: Path, log: Path
) -> None:
    config = web_config(tmp_path, f"basic_auth_users: {{prometheus: '{hashed(PASSWORD, SLOW_ROUNDS - 3)}'}}\n")
    enough = threading.Event()
    with running(registry_dir, log, "--web-config", config) as exporter, ThreadPoolExecutor(20) as pool:
        refused: list[int] = []

        def guess(who: int) -> None:
            for number in itertools.count():
                if enough.is_set():
                    return
                token = base64.b64encode(f"prometheus:{who} {number}".encode()).decode()
                with contextlib.closing(
                    http.client.HTTPConnection(*exporter.address, timeout=LIMIT, source_address=(strangers, 0))
                ) as connection:
                    connection.request("GET", "/metrics", headers={"Authorization": f"Basic {token}"})
                    refused.append(connection.getresponse().status)

        guesses = [pool.submit(guess, who) for who in range(20)]
        try:
            until(lambda: 503 in refused, "other clients to be told to retry")
            exporter.credentials = ("prometheus", PASSWORD)
            scrapes = [exporter.ask("/metrics")[0]]
            while scrapes[-1] != 200 and len(scrapes) < 40:
                checked = refused.count(401)  # waits for the earlier checks, as in Retry-After
                until(lambda checked=checked: refused.count(401) > checked + 8, "checks")  # type: ignore[misc]
                scrapes.append(exporter.ask("/metrics")[0])
        finally:
            enough.set()
        assert scrapes[-1] == 200, f"{len(scrapes)} scrapes with the right password: {scrapes}"
        assert len(scrapes) <= (1 if strangers == "127.0.0.2" else 3)
        for each in guesses:
            each.result(LIMIT)
        assert set(refused) <= {401, 503}


# ------------------------------------------------------------------ TLS


def test_client_certificates_are_required_if_configured(
    registry_dir: Path, tmp_path: Path, log: Path, authority: Authority
) -> None:
    server, mine, other = (authority.issue(name, f"{name}.test") for name in ("server", "mine", "other"))
    stranger = Authority(tmp_path, "stranger").issue("unknown")
    config = web_config(
        tmp_path,
        f"""
tls_server_config:
  cert_file: {server.cert.name}   # relative to this file
  key_file: {server.key.name}
  client_ca_file: {authority.cert.name}
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [mine.test]
  min_version: TLS12
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Content-Type-Options: nosniff
""",
    )
    with running(registry_dir, log, "--web-config", config) as exporter:
        exporter.tls = authority.client_context(mine)
        status, headers, _ = exporter.ask("/metrics")
        assert (status, headers["Strict-Transport-Security"]) == (200, "max-age=31536000")
        for certificate in (None, other, stranger):
            exporter.tls = authority.client_context(certificate)
            with pytest.raises(OSError):
                exporter.ask("/metrics")
        old = authority.client_context(mine)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        exporter.tls = old
        assert exporter.ask("/metrics")[0] == 200
        assert "Traceback" not in exporter.log


def test_a_renewed_certificate_is_used_without_a_restart(
    registry_dir: Path, tmp_path: Path, log: Path, authority: Authority
) -> None:
    server = authority.issue("server")
    config = web_config(tmp_path, f"tls_server_config: {{cert_file: {server.cert}, key_file: {server.key}}}\n")

    def served() -> str:
        return ssl.get_server_certificate(exporter.address, ca_certs=str(authority.cert))

    with running(registry_dir, log, "--web-config", config) as exporter:
        before = served()
        renewed = authority.issue("renewed")
        server.cert.write_bytes(b"half of it")
        assert served() == before, "an unfinished change stops nothing"
        renewed.key.replace(server.key)
        renewed.cert.replace(server.cert)
        until(lambda: served() != before, "the new certificate")


@pytest.mark.full
def test_prometheus_scrapes_over_tls_with_a_password(
    registry_dir: Path, tmp_path: Path, log: Path, authority: Authority
) -> None:
    server = authority.issue("server")
    config = web_config(
        tmp_path,
        f"""
tls_server_config:
  cert_file: {server.cert}
  key_file: {server.key}
basic_auth_users:
  prometheus: {hashed(PASSWORD, 10)}
""",
    )
    with (
        running(registry_dir, log, "--web-config", config) as exporter,
        recording(registry_dir),
        servers.prometheus_server(f"""
global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: jobs
  scheme: https
  basic_auth: {{username: prometheus, password: {PASSWORD}}}
  tls_config: {{ca_file: {authority.cert}, server_name: localhost}}
  static_configs: [{{targets: ["{exporter.address[0]}:{exporter.address[1]}"]}}]
""") as prometheus,
    ):

        def query(text: str) -> list[str]:
            url = f"{prometheus.url}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
            with urllib.request.urlopen(url, timeout=LIMIT) as response:
                return [each["value"][1] for each in json.load(response)["data"]["result"]]

        selector = ",".join(f'{label}="{value}"' for label, value in JOB.items())
        until(lambda: query(f'jobs_total{{{selector},status="success"}}') == ["2"], "the scrape")
        assert query('up{job="jobs"}') == ["1"]
        assert query(f"jobs_duration_seconds_count{{{selector}}}") == ["2"]


# ------------------------------------------------------------------ errors in the file

HASH = "$2b$04$" + "a" * 53


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_config: {}", "unknown key tls_config; allowed are tls_server_config, http_server_config"),
        ("tls_server_config: {cert_file: a, key_fil: b}", "unknown key tls_server_config.key_fil"),
        ("tls_server_config: {cert_file: a}", "tls_server_config.key_file is missing"),
        ("tls_server_config: {cert_file: none, key_file: none}", "cert_file or key_file"),
        ("tls_server_config: {cert_file: web.yml, key_file: web.yml}", "cert_file or key_file"),
        ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS10}", "min_version is not allowed; it takes"),
        ("tls_server_config: {cert_file: a, key_file: b, client_auth_type: X}", "client_auth_type is not allowed"),
        ("tls_server_config: {cert_file: a, key_file: b, cipher_suites: [X]}", "cipher_suites.0 is not allowed"),
        ("tls_server_config: {cert_file: a, key_file: b, prefer_server_cipher_suites: 1}", "it takes true or false"),
        (
            "tls_server_config: {cert_file: a, key_file: b, min_version: TLS13, max_version: TLS12}",
            "is above max_version",
        ),
        (
            "tls_server_config: {cert_file: 7, key_file: b}",
            "tls_server_config.cert_file is not allowed; it takes a string",
        ),
        ("tls_server_config: {cert_file: a, key_file: b, client_ca_file: c}", "client_auth_type is missing"),
        (
            "tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequireAndVerifyClientCert}",
            "client_ca_file is missing",
        ),
        ("tls_server_config: {cert_file: a, key_file: b, curve_preferences: [X25519]}", "curve_preferences"),
        ("tls_server_config: [a]", "tls_server_config has to be a mapping"),
        ("basic_auth_users: {me: plain-secret}", "basic_auth_users.me is not allowed; it takes a bcrypt hash"),
        ("basic_auth_users: {me: 7}", "basic_auth_users.me is not allowed"),
        ("basic_auth_users: {me: }", "basic_auth_users.me is not allowed"),
        ("basic_auth_users: {me:plain-secret}", "a name with a colon"),
        ("basic_auth_users: plain-secret", "basic_auth_users has to be a mapping"),
        (f"basic_auth_users: {{'a:b': {HASH}}}", "a name with a colon"),
        ("http_server_config: {headers: {X-Other: plain-secret}}", "unknown key http_server_config.headers.X-Other"),
        ("rate_limit: {burst: 1}", "unknown key rate_limit"),
        ("basic_auth_users: {me: plain-secret", "is not valid YAML, line"),
        ("- a", "the file has to be a mapping"),
        ("\0", "is not valid YAML"),
    ],
)
def test_an_unknown_key_stops_the_start_and_is_named(text: str, said: str, registry_dir: Path, tmp_path: Path) -> None:
    config = web_config(tmp_path, text)
    done = run_inside("exporter", "--listen", "127.0.0.1:0", "--dir", str(registry_dir), "--web-config", config)
    line = complaint(done)
    assert said in line
    assert "--web-config" in line
    assert "plain-secret" not in line


def test_a_missing_web_config_is_one_clear_line(registry_dir: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yml")
    done = run("exporter", "--listen", "127.0.0.1:0", "--dir", str(registry_dir), "--web-config", missing)
    assert complaint(done) == f"jobmetrics: --web-config {missing}: cannot be read: No such file or directory"


@pytest.mark.parametrize("text", ["", "basic_auth_users: {}", "tls_server_config:"])
def test_an_empty_file_requires_nothing(text: str, registry_dir: Path, tmp_path: Path, log: Path) -> None:
    with running(registry_dir, log, "--web-config", web_config(tmp_path, text)) as exporter:
        assert exporter.ask("/metrics")[0] == 200
