"""Pictures from the web, of addresses that strangers name: only of allowed hosts, public ones, and only so much."""

from collections.abc import Collection
from ipaddress import ip_address, ip_network
from string import punctuation
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import anyio
import httpcore

from minigpt4.common.errors import UserError
from minigpt4.serve.address import in_url, is_among

TIMEOUT = 10.0  # seconds for a picture, redirects included
_REDIRECTS = 3
# from https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry: what Python's
# `is_global` says differs from release to release
_NOT_PUBLIC = [
    ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure serves its machines' secrets there, in the midst of public addresses
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
_PUBLIC_V6 = ip_network("2000::/3")  # all that was ever given to somebody
_HEADERS = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "minigpt4")]


def is_public(address: str) -> bool:
    """Whether an IP address lies on the open internet: not private, loopback, link-local, reserved, or a way there."""
    ip = ip_address(address.partition("%")[0])
    return (ip.version == 4 or ip in _PUBLIC_V6) and not any(ip in block for block in _NOT_PUBLIC)


class _Allowed(httpcore.AsyncNetworkBackend):
    """Connects to allowed hosts alone; looks a name up once, and connects to the address that it has checked, which no
    second answer can change.
    """

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = hosts
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        if not is_among(in_url(host), self._hosts):
            raise UserError(f"this server fetches none from '{host[:80]}'.")
        try:
            addresses = list(dict.fromkeys(str(own[0]) for *_, own in await anyio.getaddrinfo(host, port)))
        except (OSError, UnicodeError):
            addresses = []
        if not addresses or not all(map(is_public, addresses)):  # in one wording: inner names are nobody's business
            raise UserError(f"'{host}' has no public address, and others are refused.")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, *args, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise UserError(f"'{host}' can't be reached.")


async def download(url: str, hosts: Collection[str], max_bytes: int) -> bytes:
    """Fetches a picture's bytes.

    Args:
        hosts: from which pictures may come, as `is_among` takes them.

    Raises:
        UserError: the address or one that it redirects to is not of `hosts`, not public or not http(s), or the answer
            is an error, too large or too slow.
    """
    try:
        with anyio.fail_after(TIMEOUT):
            async with httpcore.AsyncConnectionPool(network_backend=_Allowed(hosts)) as pool:
                for _ in range(_REDIRECTS + 1):
                    # as a browser does with a path: what is not ASCII is escaped, what is escaped stays
                    target, body = await _get(pool, quote(url, safe=punctuation), max_bytes)
                    if not target:
                        return body
                    url = urljoin(url, target)
                raise UserError(f"more than {_REDIRECTS} redirects.")
    except UserError as error:
        raise UserError(f"the picture '{url[:80]}' can't be fetched: {error} Send it as a data: URL.") from None
    except (TimeoutError, httpcore.TimeoutException):
        reason = f"it took more than {TIMEOUT:.0f} s."
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError):
        reason = "this is not an answer of a web server."
    raise UserError(f"the picture '{url[:80]}' can't be fetched: {reason} Send it as a data: URL.")


async def _get(pool: httpcore.AsyncConnectionPool, url: str, max_bytes: int) -> tuple[str, bytes]:
    """Where the answer redirects to, or its body."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError("it is not an http(s) address.")
    async with pool.stream("GET", url, headers=_HEADERS) as response:
        headers = {name.lower(): value for name, value in response.headers}
        if 300 <= response.status < 400 and b"location" in headers:
            return quote(headers[b"location"], safe=punctuation), b""
        if response.status != 200:
            raise UserError(f"the server answered {response.status}.")
        body = bytearray()
        async for piece in response.aiter_stream():
            body += piece
            if len(body) > max_bytes:
                raise UserError(f"it is larger than {max_bytes} bytes.")
        return "", bytes(body)
