"""`erniem-fast serve`: a checkpoint behind HTTP."""

from typing import Annotated

import typer

from ..inference.engine import DTYPES, Encoder
from .errors import InputError, say_on_stderr
from .options import DeviceOption, ModelOption, parse_choice, parse_device


def serve_command(
    model: ModelOption,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any that is free.")] = 8080,
    served_model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name for clients; --model unless told otherwise.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="ERNIEM_FAST_API_KEY",
            show_default=False,
            help="Requests must bring it as `Authorization: Bearer KEY`, but for probes, metrics and the page.",
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most tokens of one call of the model.")
    ] = 16384,
    max_wait_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, help="Longest wait of an idle model for requests on their way to it.")
    ] = 5.0,
    max_concurrent_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests in work; one more gets status 429.")
    ] = 512,
    max_client_batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Texts of one request; more get status 413.")
    ] = 32,
    payload_limit: Annotated[
        int, typer.Option(metavar="BYTES", min=1, help="Of a request's body; more get status 413.")
    ] = 2_000_000,
    auto_truncate: Annotated[
        bool, typer.Option("--auto-truncate/--no-auto-truncate", help="Cut texts that are too long, or refuse them.")
    ] = True,
    tokenization_workers: Annotated[int, typer.Option(metavar="N", min=1, help="Threads that tokenize.")] = 2,
    cors_allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may read answers, or *; can be repeated."),
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(metavar="S", min=0, help="Longest time for requests in work after SIGTERM.")
    ] = 30.0,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help=f"What to compute in: {', '.join(DTYPES)}.")] = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Serve a checkpoint over HTTP: text-embeddings-inference's routes, OpenAI's /v1/embeddings, and a page at /.

    Prints the address once it is ready. SIGTERM finishes the requests in work first.
    """
    try:
        from ..inference.server import ServerSettings, create_app
        from ..inference.server.run import bind, run
    except ImportError as error:
        raise InputError(f"serve needs {error.name}: pip install 'erniem_fast[serve]'") from error
    if api_key == "":
        raise InputError("--api-key '': expected at least one character")
    parse_choice("--dtype", dtype, DTYPES)
    place = parse_device(device)
    settings = ServerSettings(
        model_id=model, served_model_name=served_model_name, max_concurrent_requests=max_concurrent_requests,
        max_client_batch_size=max_client_batch_size, max_batch_tokens=max_batch_tokens, max_wait_ms=max_wait_ms,
        payload_limit=payload_limit, auto_truncate=auto_truncate, api_key=api_key,
        cors_allow_origin=tuple(cors_allow_origin or ()), tokenization_workers=tokenization_workers,
    )  # fmt: skip
    try:
        listener = bind(host, port, settings.write_seconds)
    except OSError as error:
        raise InputError(
            f"--host {host!r} --port {port}: {error.strerror or error}; expected a free address"
        ) from error
    with listener:
        encoder = Encoder.from_pretrained(model, dtype=dtype, device=place)
        app = create_app(encoder, settings)
        address = f"[{host}]" if ":" in host else host
        line = f"Serving {settings.model_name} ({encoder.dtype}, {encoder.device}) on "
        line += f"http://{address}:{listener.getsockname()[1]}"
        unfinished = run(app, listener, drain_seconds, lambda: say_on_stderr(line))
    if unfinished:
        say_on_stderr(f"{unfinished} requests were not finished")
        raise typer.Exit(1)
