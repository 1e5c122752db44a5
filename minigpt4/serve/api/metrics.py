"""What `/metrics` reports to Prometheus."""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:  # which imports this
    from minigpt4.serve.api.batching import QueuedRequest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


class Metrics:
    """The counters of one server. Times are in seconds."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("minigpt4_requests", "Requests for answers, by HTTP status", ["status"], registry=own)
        self.tokens = Counter(
            "minigpt4_tokens", "Tokens read (prompt) and written (completion)", ["kind"], registry=own
        )
        self.queue_length = Gauge("minigpt4_queue_length", "Answers that wait for their batch", registry=own)
        self.batch_size = Histogram(
            "minigpt4_batch_size", "Answers made together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        seconds = partial(Histogram, buckets=_SECONDS, registry=own)
        self.queue_seconds = seconds("minigpt4_queue_seconds", "From asking to the begin of the batch")
        self.first_token_seconds = seconds("minigpt4_first_token_seconds", "From asking to the first token")
        self.request_seconds = seconds("minigpt4_request_seconds", "From a request to the end of its answer")

    def note_request(self, status: int, started: float) -> None:
        """Counts a request for answers that started at `started`, of `time.perf_counter`."""
        self.requests.labels(status).inc()
        self.request_seconds.observe(time.perf_counter() - started)

    def note_batch(self, batch: Sequence["QueuedRequest"], started: float) -> None:
        """Counts a batch that is done."""
        self.batch_size.observe(len(batch))
        for item in batch:
            self.queue_seconds.observe(started - item.asked)
            if item.first_token is not None:
                self.first_token_seconds.observe(item.first_token - item.asked)

    def note_tokens(self, items: Sequence["QueuedRequest"]) -> None:
        """Counts the tokens of the answers to one prompt, as a request's usage does."""
        if any(item.new_tokens for item in items):
            self.tokens.labels("prompt").inc(items[0].prompt_tokens)
            self.tokens.labels("completion").inc(sum(item.new_tokens for item in items))
