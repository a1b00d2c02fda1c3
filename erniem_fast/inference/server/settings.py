"""Limits of a server, with text-embeddings-inference's defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """What a server accepts, and how long it waits.

    Attributes:
        model_id: the folder or Hub id that was loaded, as `/info` reports it.
        served_model_name: the name in `/v1/models` and in answers of `/v1/embeddings`; None: `model_id`.
        max_concurrent_requests: requests in work; one more gets 429.
        max_client_batch_size: texts of one request; more get 413.
        max_batch_tokens: tokens of one call of the model.
        max_wait_ms: longest time for which an idle model waits for requests that are being tokenized.
        payload_limit: bytes of a body; more get 413.
        auto_truncate: cut texts of more tokens than the model takes, where a request does not say.
        api_key: what requests must bring as `Authorization: Bearer KEY`; None: nothing.
        cors_allow_origin: origins whose pages a browser lets read answers; () for none.
        tokenization_workers: threads that tokenize.
        read_seconds: longest time for a body to arrive; then 408.
        write_seconds: longest time for a reader to take a piece of an answer; then the connection is closed.
    """

    model_id: str
    served_model_name: str | None = None
    max_concurrent_requests: int = 512
    max_client_batch_size: int = 32
    max_batch_tokens: int = 16384
    max_wait_ms: float = 5.0
    payload_limit: int = 2_000_000
    auto_truncate: bool = True
    api_key: str | None = None
    cors_allow_origin: tuple[str, ...] = ()
    tokenization_workers: int = 2
    read_seconds: float = 30.0
    write_seconds: float = 30.0

    @property
    def model_name(self) -> str:
        """The model's name for clients."""
        return self.served_model_name or self.model_id
