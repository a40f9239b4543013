"""The metrics of /metrics, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rrt_edge.runtime.decoding.reply import Stats, Token

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server; the model runs in one process, so they need no shared directory."""

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("rrt_edge_requests", "Requests answered", ["path", "status"], registry=registry)
        self._prompt = Counter("rrt_edge_prompt_tokens", "Prompt tokens of replies that began", registry=registry)
        self._tokens = Counter(
            "rrt_edge_generated_tokens", "Generated tokens by the depth they left at", ["depth"], registry=registry
        )
        self._rows = Counter(
            "rrt_edge_block_rows", "Rows of replies through the block, rows caught up included", registry=registry
        )
        self._drafted = Counter("rrt_edge_drafted_tokens", "Tokens that were drafted", registry=registry)
        self._accepted = Counter("rrt_edge_accepted_drafts", "Drafts that stood", registry=registry)
        self._text_drafted = Counter(
            "rrt_edge_text_drafted_tokens", "Tokens drafted from the text, of those drafted", registry=registry
        )
        self._text_accepted = Counter(
            "rrt_edge_text_accepted_drafts", "Drafts from the text that stood", registry=registry
        )
        self._first = Histogram(
            "rrt_edge_time_to_first_token_seconds", "From the request to its first token, waiting included",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._between = Histogram(
            "rrt_edge_time_per_token_seconds", "Between the tokens of a reply", buckets=SECONDS, registry=registry
        )
        self._whole = Histogram(
            "rrt_edge_request_seconds", "From the request to its last token", buckets=SECONDS, registry=registry
        )
        self._depth = Gauge("rrt_edge_mean_depth", "Mean depth of all tokens generated so far", registry=registry)
        Gauge("rrt_edge_requests_waiting", "Requests in the queue", registry=registry).set_function(waiting)
        Gauge("rrt_edge_requests_running", "Requests being answered", registry=registry).set_function(running)
        self._depths = self._count = 0

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def token(self, token: Token, seconds: float, first: bool) -> None:
        """A token came, so long after the one before it or, the first, after the request."""
        (self._first if first else self._between).observe(seconds)
        self._tokens.labels(str(token.depth)).inc()
        self._depths += token.depth
        self._count += 1
        self._depth.set(self._depths / self._count)

    def ended(self, stats: Stats, seconds: float) -> None:
        """A reply ended, so long after its request."""
        self._prompt.inc(stats.prompt_tokens)
        self._rows.inc(stats.block_rows)
        self._drafted.inc(stats.drafted)
        self._accepted.inc(stats.accepted)
        self._text_drafted.inc(stats.text_drafted)
        self._text_accepted.inc(stats.text_accepted)
        self._whole.observe(seconds)

    def text(self) -> bytes:
        text: bytes = generate_latest(self.registry)
        return text
