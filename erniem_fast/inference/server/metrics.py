"""What `/metrics` reports, under text-embeddings-inference's names."""

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from .batcher import Call

# From 0.1 ms to 5 minutes, each 1.5 times the one before.
SECONDS = tuple(round(1e-4 * 1.5**step, 7) for step in range(38))
COUNTS = tuple(float(2**step) for step in range(13))
TOKENS = tuple(float(2**step) for step in range(19))


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # A Gauge, since prometheus-client adds _total to a Counter's name, and dashboards ask for these names.
        self.request_count = Gauge(
            "te_request_count", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.requests_in_work = Gauge("te_requests_in_work", "Requests that are not answered.", registry=self.registry)
        self.request_duration = self._seconds("te_request_duration", "From a request's arrival to its answer.", "route")
        self.tokenization = self._seconds("te_request_tokenization_duration", "Tokenizing a request's texts.")
        self.queue = self._seconds("te_request_queue_duration", "Waiting for the model.")
        self.inference = self._seconds("te_request_inference_duration", "Calls of the model for a request.")
        self.input_length = Histogram(
            "te_request_input_length", "Tokens of a text.", buckets=TOKENS, registry=self.registry
        )
        self.batch_size = Histogram(
            "te_batch_next_size", "Texts of a call of the model.", buckets=COUNTS, registry=self.registry
        )
        self.batch_tokens = Histogram(
            "te_batch_next_tokens", "Tokens of a call of the model.", buckets=TOKENS, registry=self.registry
        )
        self.queue_size = Gauge("te_queue_size", "Texts that wait for the model.", registry=self.registry)

    def observe_call(self, call: Call) -> None:
        """Count a call of the model."""
        self.batch_size.observe(call.items)
        self.batch_tokens.observe(call.tokens)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.request_count.labels(route, str(status)).inc()
        self.request_duration.labels(route).observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, f"{meaning} In seconds.", labels, buckets=SECONDS, registry=self.registry)
