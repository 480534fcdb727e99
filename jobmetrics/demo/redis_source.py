"""Where the demo's Redis comes from: REDIS_URL, or a private server, or nowhere."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

import redis

from jobmetrics.demo.errors import DemoError
from jobmetrics.demo.interrupts import Interrupts
from jobmetrics.demo.processes import Process, Processes

URL_VARIABLE = "REDIS_URL"
WITHOUT_VARIABLE = "JOBMETRICS_DEMO_WITHOUT_REDIS"
ELSEWHERE = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
"""Where a redis-server may be though PATH does not say so: an ordinary Debian user's has no /usr/sbin."""
TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.05


def given_url(environment: Mapping[str, str]) -> str | None:
    """The server that the person who starts the demo wants to be used."""
    return environment.get(URL_VARIABLE) or None


def unwanted(environment: Mapping[str, str]) -> bool:
    """Whether the demo shall do as if there were no Redis."""
    return environment.get(WITHOUT_VARIABLE, "") not in {"", "0"}


def find_server(environment: Mapping[str, str]) -> str | None:
    """Path of a redis-server, if this machine has one."""
    path = os.pathsep.join((environment.get("PATH", os.defpath), *ELSEWHERE))
    return shutil.which("redis-server", path=path)


def client(url: str) -> redis.Redis:
    """A client that gives up rather than hang."""
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)


def check(url: str) -> None:
    """Raise DemoError unless a server answers there; whoever shows its message hides the password."""
    try:
        with client(url) as connection:
            connection.ping()
    except (redis.RedisError, OSError) as error:
        raise DemoError(f"{URL_VARIABLE}={url} does not answer: {error}") from error
    except ValueError as error:
        # Its message may quote a piece of a password that was cut at the wrong place.
        raise DemoError(
            f"{URL_VARIABLE}={url} is no URL of a Redis; it takes redis://, rediss:// or unix://"
        ) from error


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(server: str, processes: Processes, home: Path, interrupts: Interrupts) -> str:
    """Start a private server that keeps nothing on disk, wait until it answers, return its URL."""
    folder = home / "server"
    folder.mkdir()
    port = free_port()
    # RQ's jobs are pickles: who can write to this server can run code as us, so other users of this
    # machine must not. In a file, since everybody can read a command line.
    password = secrets.token_hex()
    options = folder / "redis.conf"
    options.touch(mode=0o600)
    options.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndaemonize no\ndir "{folder}"\n',
        encoding="utf-8",
    )
    process = processes.start("Redis", [server, str(options)], serves=True)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    while not _is(process, url):
        processes.check()
        interrupts.pause(POLL_SECONDS)
    return url


def _is(process: Process, url: str) -> bool:
    """Whether this very process answers: another server may have taken the port in between."""
    try:
        with client(url) as connection:
            return int(connection.info("server")["process_id"]) == process.popen.pid
    except redis.RedisError:
        return False
