"""Where a server listens."""

import socket
from collections.abc import Collection
from ipaddress import ip_address

from minigpt4.common.errors import UserError, first_line


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, on which nobody is listened to yet. Port 0 is any free one.

    Raises:
        UserError: it can't be taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        place = socket.socket(family)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((address[0], port, *address[2:]))  # getaddrinfo would take port 70000 for 4464
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error).rstrip(".")
        raise UserError(f"--host {host} --port {port}: {reason}. Choose another host or port.") from None
    return place


def in_url(host: str) -> str:
    """A host as URLs write it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def known_hosts(place: socket.socket, host: str, others: Collection[str] = ()) -> set[str]:
    """The hosts that a server at `place` may be asked for, as `is_among` takes them.

    Args:
        host: the one to listen on.
        others: those by which it may be asked for too. Without any, a server that others reach may be asked for any:
            nobody knows by which names they do.
    """
    if not others and not ip_address(place.getsockname()[0].partition("%")[0]).is_loopback:
        return {"*"}
    return {"localhost", "127.0.0.1", "[::1]", in_url(host).lower(), *others}


def is_among(host: str, hosts: Collection[str]) -> bool:
    """Whether a host is one of `hosts`, where "*.example.com" is every host below example.com, and "*" any."""
    host = host.lower().removesuffix(".")
    return any(known in ("*", host) or (known.startswith("*.") and host.endswith(known[1:])) for known in hosts)
