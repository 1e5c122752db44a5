"""Where a server listens."""

import socket

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
