"""Store URLs, taken apart.

One place knows the accepted forms, so that every wrong one is refused with the list of them. A password
never leaves this module in a text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from attrs import field, frozen

from atomic_actors.base._errors import InvalidConfig

__all__ = (
    "DEFAULT_PORT",
    "URL_FORMS",
    "StoreLocation",
    "StoreScheme",
    "parse_store_url",
    "url_for_display",
)

DEFAULT_PORT: Final = 6379
_DEFAULT_SENTINEL_PORT: Final = 26379
#: More digits than any port or database has, and fewer than `int` refuses to read.
_DIGITS_MAX: Final = 18
URL_FORMS: Final = (
    "embedded:, embedded:some/dir, embedded:///abs/dir, memory:, redis://host:6379/0, rediss://host:6379/0, "
    "unix:///path/to.sock, redis+sentinel://host:26379/service-name, redis+cluster://host:6379"
)
_TLS_OPTIONS: Final = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)
#: Whether to use TLS, where the scheme does not say it.
_TLS_CHOICE: Final = frozenset({"tls"})


class StoreScheme(StrEnum):
    """The first word of a store URL."""

    EMBEDDED = "embedded"
    MEMORY = "memory"
    REDIS = "redis"
    REDISS = "rediss"
    UNIX = "unix"
    SENTINEL = "redis+sentinel"
    CLUSTER = "redis+cluster"


@frozen(kw_only=True)
class StoreLocation:
    """A store URL, taken apart.

    Args:
        scheme: what sort of store it is.
        hosts: `(host, port)` pairs; one for `redis` and `rediss`, one or more for sentinel and cluster.
        db: the number of the database.
        path: the socket of `unix`, or the directory of `embedded` (empty for the default one).
        service_name: what the sentinels call the service.
        username: the user name, or None.
        password: the password, or None; never shown.
        options: what stood behind the `?`, without `db`.
    """

    scheme: StoreScheme
    hosts: tuple[tuple[str, int], ...] = ()
    db: int = 0
    path: str = ""
    service_name: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = ()

    @property
    def host(self) -> str:
        """The first host; empty where there is none."""
        return self.hosts[0][0] if self.hosts else ""

    @property
    def port(self) -> int:
        """The first port; 0 where there is none."""
        return self.hosts[0][1] if self.hosts else 0

    def __str__(self) -> str:
        """The location as a URL without the password, for logs."""
        if self.scheme in (StoreScheme.EMBEDDED, StoreScheme.MEMORY):
            return f"{self.scheme}:{self.path}"
        user = f"{quote(self.username, safe='', errors='replace')}@" if self.username else ""
        if self.scheme is StoreScheme.UNIX:
            return f"unix://{user}{self.path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        service = f"/{self.service_name}" if self.service_name else ""
        return f"{self.scheme}://{user}{hosts}{service}/{self.db}"


def url_for_display(url: str) -> str:
    """The URL with everything between the user name and the `@` hidden, also where it cannot be parsed."""
    scheme, separator, rest = url.partition("://")
    userinfo, at, host = rest.rpartition("@")
    if not at:
        return url
    username, colon, _ = userinfo.partition(":")
    return f"{scheme}{separator}{username}{colon}{'***' if colon else ''}@{host}"


def _bad_url(url: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"url: {url_for_display(url)!r} {why}; the forms are {URL_FORMS}")


def _split_url(url: str) -> tuple[SplitResult, StoreScheme]:
    try:
        parts = urlsplit(url)
        scheme = StoreScheme(parts.scheme)
    except ValueError:
        raise _bad_url(url, "is not a store URL") from None
    if parts.fragment:
        raise _bad_url(url, "has a '#'; write %23 in a password")
    return parts, scheme


def parse_store_url(url: str) -> tuple[StoreLocation, frozenset[str]]:
    """Take a store URL apart.

    Returns:
        The location, and which of `host`, `port`, `db`, `username` and `password` the URL itself names.

    Raises:
        InvalidConfig: the URL has none of the accepted forms; the text lists them and hides the password.
    """
    parts, scheme = _split_url(url)
    if scheme in (StoreScheme.EMBEDDED, StoreScheme.MEMORY):
        return _parse_local(url, parts, scheme), frozenset()
    userinfo, _, netloc = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = _parse_options(url, parts, scheme)
    path, service_name = parts.path, ""
    hosts: tuple[tuple[str, int], ...] = ()
    named = {name for name, text in (("username", username), ("password", password)) if text}
    if scheme is StoreScheme.UNIX:
        if netloc or not path.strip("/"):
            raise _bad_url(url, "does not name a socket")
        socket, path = unquote(path), ""
    else:
        socket = ""
        hosts, has_port = _parse_hosts(url, netloc, scheme)
        named |= {"host", "port"} if has_port else {"host"}
    if scheme is StoreScheme.SENTINEL:
        service_name, _, path = path.lstrip("/").partition("/")
        if not service_name:
            raise _bad_url(url, "does not name the service that the sentinels monitor")
    db, has_db = _parse_db(url, path.strip("/"), options.pop("db", ""), scheme)
    location = StoreLocation(
        scheme=scheme,
        hosts=hosts,
        db=db,
        path=socket,
        service_name=unquote(service_name),
        username=unquote(username) or None,
        password=unquote(password) or None,
        options=tuple(sorted(options.items())),
    )
    return location, frozenset(named | ({"db"} if has_db else set[str]()))


def _parse_local(url: str, parts: SplitResult, scheme: StoreScheme) -> StoreLocation:
    if parts.netloc:
        raise _bad_url(url, "must not name a host")
    if parts.query:
        raise _bad_url(url, "must not have options")
    if scheme is StoreScheme.MEMORY and parts.path:
        raise _bad_url(url, "must not have a path")
    return StoreLocation(scheme=scheme, path=unquote(parts.path))


def _parse_db(url: str, in_path: str, in_options: str, scheme: StoreScheme) -> tuple[int, bool]:
    if in_path and in_options:
        raise _bad_url(url, "names the database twice")
    text = in_path or in_options
    if text and not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise _bad_url(url, f"has {text!r} instead of a database number")
    db = int(text or "0")
    if db and scheme is StoreScheme.CLUSTER:
        raise _bad_url(url, "names a database, but a cluster has only database 0")
    return db, bool(text)


def _parse_options(url: str, parts: SplitResult, scheme: StoreScheme) -> dict[str, str]:
    plain = scheme in (StoreScheme.REDIS, StoreScheme.UNIX)
    choice = _TLS_CHOICE if scheme is StoreScheme.SENTINEL else frozenset[str]()
    known = sorted({"db"} if plain else {"db", *_TLS_OPTIONS, *choice})
    options: dict[str, str] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise _bad_url(url, f"has the unknown option {name!r} (known here: {', '.join(known)})")
        if name in options:
            raise _bad_url(url, f"has the option {name!r} twice")
        options[name] = text
    return options


def _parse_hosts(url: str, netloc: str, scheme: StoreScheme) -> tuple[tuple[tuple[str, int], ...], bool]:
    if not netloc:
        raise _bad_url(url, "does not name a host")
    default = _DEFAULT_SENTINEL_PORT if scheme is StoreScheme.SENTINEL else DEFAULT_PORT
    hosts: list[tuple[str, int]] = []
    has_port = False
    for text in netloc.split(","):
        host, port = _split_port(text)
        if not host or (port and not _is_port(port)):
            raise _bad_url(url, f"has {text!r} instead of host:port")
        hosts.append((host, int(port) if port else default))
        has_port = has_port or bool(port)
    if len(hosts) > 1 and scheme in (StoreScheme.REDIS, StoreScheme.REDISS):
        raise _bad_url(url, "names several hosts, which only redis+sentinel and redis+cluster take")
    return tuple(hosts), has_port


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and 0 < int(text) < 65536


def _split_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = text.partition(":")
    return host, port
