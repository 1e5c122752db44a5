"""Pictures from the web, of addresses that strangers name: only public ones, and only so much of them."""

from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from string import punctuation
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import anyio
import httpcore

from minigpt4.common.errors import UserError

PATIENCE = 10.0  # seconds for a picture, redirects included
_REDIRECTS = 3
_NAT64 = IPv6Network("64:ff9b::/96")
_NO_ONES = [ip_network(own) for own in ("192.88.99.0/24", "3fff::/20", "fec0::/10")]  # Python knows not all
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "minigpt4",
}


def is_public(address: str) -> bool:
    """Whether an IP address lies on the open internet: not private, loopback, link-local, reserved, or a way there."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip in _NAT64):
        return False  # an IPv4 address in disguise
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in _NO_ONES))


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Looks a name up once and connects to the address that it has checked, which no second answer can change."""

    def __init__(self) -> None:
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = list(dict.fromkeys(str(own[0]) for *_, own in await anyio.getaddrinfo(host, port)))
        except (OSError, UnicodeError):
            addresses = []
        if not addresses or not all(map(is_public, addresses)):  # in one wording: inner names are nobody's business
            raise UserError(f"'{host}' has no public address, and others are refused.")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout=timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise UserError(f"'{host}' can't be reached.")


async def download(url: str, max_bytes: int) -> bytes:
    """Fetches a picture's bytes.

    Raises:
        UserError: the address or one that it redirects to is not public or not http(s), or the answer is an error,
            too large or too slow.
    """
    try:
        with anyio.fail_after(PATIENCE):
            async with httpcore.AsyncConnectionPool(network_backend=_PublicOnly()) as pool:
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
        reason = f"it took more than {PATIENCE:.0f} s."
    except (httpcore.NetworkError, httpcore.ProtocolError, ValueError):
        reason = "this is no answer of a web server."
    raise UserError(f"the picture '{url[:80]}' can't be fetched: {reason} Send it as a data: URL.")


async def _get(pool: httpcore.AsyncConnectionPool, url: str, max_bytes: int) -> tuple[str, bytes]:
    """Where the answer redirects to, or its body."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError("it is no http(s) address.")
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
