"""How tests wait: for an event, never for a time that a busy machine might need more of."""

import time
from collections.abc import Callable
from typing import Any

LIMIT = 300  # seconds; only a test that hangs gets there, however busy the machine is


def wait_for(holds: Callable[[], Any], state: Callable[[], object] = lambda: "") -> Any:
    """Waits until `holds` returns something true, and returns it.

    Raises:
        AssertionError: it did not within `LIMIT`; the message holds what `state` returns then.
    """
    end = time.monotonic() + LIMIT
    while not (found := holds()):
        assert time.monotonic() < end, state()
        time.sleep(0.01)
    return found
