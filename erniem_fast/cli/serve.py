"""`erniem-fast serve`: a checkpoint behind HTTP."""

import math
from typing import Annotated

import typer

from ..inference.encoder_process import EncoderProcess, ProcessEndedError
from ..inference.engine import DTYPES
from .errors import InputError, say_on_stderr
from .options import DeviceOption, DtypeOption, ModelOption, parse_choice, parse_count, parse_device

LAST_PORT = 65535


def serve_command(
    model: ModelOption,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[str, typer.Option(metavar="N", help="0: any that is free.")] = "8080",
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
    max_batch_tokens: Annotated[str, typer.Option(metavar="N", help="Most tokens of one call of the model.")] = "16384",
    max_wait_ms: Annotated[
        str, typer.Option(metavar="MS", help="Longest wait of an idle model for requests on their way to it.")
    ] = "5",
    max_concurrent_requests: Annotated[
        str, typer.Option(metavar="N", help="Requests in work; one more gets status 429.")
    ] = "512",
    max_client_batch_size: Annotated[
        str, typer.Option(metavar="N", help="Texts of one request; more get status 413.")
    ] = "32",
    payload_limit: Annotated[
        str, typer.Option(metavar="BYTES", help="Of a request's body; more get status 413.")
    ] = "2000000",
    auto_truncate: Annotated[
        bool, typer.Option("--auto-truncate/--no-auto-truncate", help="Cut texts that are too long, or refuse them.")
    ] = True,
    tokenization_workers: Annotated[str, typer.Option(metavar="N", help="Threads that tokenize.")] = "2",
    cors_allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may read answers, or *; can be repeated."),
    ] = None,
    drain_seconds: Annotated[
        str, typer.Option(metavar="S", help="Longest time for requests in work after SIGTERM.")
    ] = "30",
    dtype: DtypeOption = "auto",
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
        model_id=model,
        served_model_name=served_model_name,
        max_concurrent_requests=parse_count("--max-concurrent-requests", max_concurrent_requests),
        max_client_batch_size=parse_count("--max-client-batch-size", max_client_batch_size),
        max_batch_tokens=parse_count("--max-batch-tokens", max_batch_tokens),
        max_wait_ms=_parse_number("--max-wait-ms", max_wait_ms),
        payload_limit=parse_count("--payload-limit", payload_limit),
        auto_truncate=auto_truncate,
        api_key=api_key,
        cors_allow_origin=tuple(cors_allow_origin or ()),
        tokenization_workers=parse_count("--tokenization-workers", tokenization_workers),
    )
    to_drain = _parse_number("--drain-seconds", drain_seconds)
    number = 0 if port == "0" else parse_count("--port", port)
    if number > LAST_PORT:
        raise InputError(f"--port {port!r}: expected a whole number of at most {LAST_PORT}")
    try:
        listener = bind(host, number, settings.write_seconds)
    except OSError as error:
        raise InputError(
            f"--host {host!r} --port {port}: {error.strerror or error}; expected a free address"
        ) from error
    with listener:
        try:
            with EncoderProcess(model, dtype=dtype, device=place) as encoder:
                _check(model, encoder)
                app = create_app(encoder, settings)
                address = f"[{host}]" if ":" in host else host
                line = f"Serving {settings.model_name} ({encoder.dtype}, {encoder.device}) on "
                line += f"http://{address}:{listener.getsockname()[1]}"
                unfinished = run(
                    app, listener, to_drain, lambda: say_on_stderr(line), lambda: encoder.exit_code is not None
                )
                if encoder.exit_code is not None:
                    raise ProcessEndedError(encoder.exit_code)
        except ProcessEndedError as error:
            say_on_stderr(f"Error: {error}")
            raise typer.Exit(1) from error
    if unfinished:
        say_on_stderr(f"{unfinished} requests were not finished")
        raise typer.Exit(1)


def _check(model: str, encoder: EncoderProcess) -> None:
    """Compute a text: a model that can't would be a traceback of the app's."""
    try:
        encoder.encode("The model computes this.")
    except ProcessEndedError:
        raise
    except RuntimeError as error:
        raise InputError(f"--model {model!r}: {error}") from error


def _parse_number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{name} {value!r}: expected a number of at least 0")
    return number
