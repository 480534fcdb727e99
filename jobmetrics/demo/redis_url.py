"""Redis URLs: for people (without the password) and for kombu (which spells sockets its own way)."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def secrets_of(url: str) -> tuple[str, ...]:
    """The passwords in it, as written and as meant, the longest first; empty if there is none."""
    # Not urlsplit: a password with a '/' or '#' left unquoted would be cut short and then shown.
    rest = url.partition("://")[2] or url
    login = rest.rpartition("@")[0]
    written = {login.partition(":")[2] or login}
    written |= {
        word.removeprefix("password=") for word in rest.rpartition("?")[2].split("&") if word.startswith("password=")
    }
    found = (written | {unquote(word) for word in written}) - {""}
    return tuple(sorted(found, key=len, reverse=True))


def hide(text: str, url: str | None) -> str:
    """`text` with every occurrence of the URL's password replaced."""
    for secret in secrets_of(url or ""):
        text = text.replace(secret, "***")
    return text


def for_celery(url: str) -> str:
    """The same server as kombu wants it named."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    query = "&".join(
        f"virtual_host={part[3:]}" if part.startswith("db=") else part for part in parts.query.split("&") if part
    )
    return f"redis+socket://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")
