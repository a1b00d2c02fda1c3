"""The demo: real text in 23 languages through the padded reference and through the padding-free model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..configuration import ErnieMConfig
from ..files.formats import VECTOR, Npy, check_ending
from ..files.output import open_output
from ..inference.loading import load_config, load_encoder, load_tokenizer
from ..inference.progress import progress_bar
from ..inference.runner import Runner
from ..inference.texts import TextTokens
from ..inference.tokens import Row
from ..modeling import ErnieMModel
from ..packing import PackedBatch
from ..tokenization import ErnieMTokenizer
from .verify import pad, reference_of, sample

SEED = 0
REFERENCE_BATCH = 16
BATCH_TOKENS = 8192
TOKENIZER = Path(__file__).parents[1] / "demo_data" / "tokenizer"


class Pass(NamedTuple):
    """One run of one model over the sample.

    Attributes:
        computed: number of tokens computed, padding included.
        seconds: wall-clock time of the run.
        states: last hidden states of each sequence, (length, hidden_size) float32.
        vectors: their means, (n, hidden_size) float32; of the padding-free model only.
    """

    computed: int
    seconds: float
    states: list[torch.Tensor]
    vectors: np.ndarray


def demo(name: str | None, out: str, device: torch.device, say: Callable[[str], None]) -> None:
    """Encode the sample by both models, say how they compare, and write the vectors.

    Args:
        name: folder of a checkpoint, or its id on the Hub; None: ernie-m-base's sizes, with random weights.
        out: the .npy file to write, (96, hidden_size) float32; "-": stdout.
        device: where both models run, in float32.
        say: takes the report, line by line.

    Raises:
        InputError: no usable checkpoint, or `out` can't be written.
    """
    check_ending(out, (".npy",))
    with open_output(out, Npy(), None, False, say) as output:
        documents = sample()
        model, tokenizer = _random_base() if name is None else _checkpoint(name)
        model = model.to(device)
        texts = [text for _, text in documents]
        sequences = [row.ids for row in TextTokens(tokenizer, model.config.max_tokens).tokenize(texts)]
        languages = len({language for language, _ in documents})
        say(
            f"{len(texts)} documents in {languages} languages, {sum(map(len, sequences)):,} tokens. "
            f"ErnieM of {model.num_parameters() / 1e6:.1f} M parameters, float32 on {_name(device)}, "
            f"{'random weights' if name is None else f'weights of {name}'}."
        )
        plain = reference_of(model)
        # The first run starts threads and, on a GPU, compiles kernels: keep it out of the measurement.
        warm_up = sequences if device.type == "cuda" else sorted(sequences, key=len)[:4]
        _padded(plain, warm_up, progress=False)
        _packed(model, warm_up, progress=False)
        padded = _padded(plain, sequences, progress=True)
        packed = _packed(model, sequences, progress=True)
        count, hidden_size = packed.vectors.shape
        output.add([{VECTOR: vector} for vector in packed.vectors])
    for line in _table(padded, packed):
        say(line)
    say(f"Wrote {out}: {count} vectors of {hidden_size} numbers, the mean of each document's tokens.")
    if name is None:
        say("THE WEIGHTS ARE RANDOM: speed and agreement are real, the vectors mean nothing.")
        say("With a real checkpoint: make demo MODEL=dir, or erniem-fast demo --model dir.")


def _random_base() -> tuple[ErnieMModel, ErnieMTokenizer]:
    torch.manual_seed(SEED)
    model = ErnieMModel(ErnieMConfig()).eval()
    return model, ErnieMTokenizer(TOKENIZER / "sentencepiece.bpe.model", TOKENIZER / "vocab.txt")


def _checkpoint(name: str) -> tuple[ErnieMModel, ErnieMTokenizer]:
    config = load_config(name)
    tokenizer = load_tokenizer(name, config)
    return load_encoder(name, torch.float32, torch.device("cpu")), tokenizer


def _padded(plain: Any, sequences: list[np.ndarray], progress: bool) -> Pass:
    """Run the reference in batches of `REFERENCE_BATCH` in order of arrival, each padded to its longest."""
    states: list[torch.Tensor] = []
    computed = 0
    start = time.perf_counter()
    with progress_bar(sum(map(len, sequences)), "Reference".ljust(12), " tokens", progress) as bar:
        for begin in range(0, len(sequences), REFERENCE_BATCH):
            batch = sequences[begin : begin + REFERENCE_BATCH]
            ids, mask = pad(batch, plain.config.pad_token_id, plain.device)
            with torch.inference_mode():
                hidden = plain(ids, attention_mask=mask, return_dict=True).last_hidden_state
                rows = hidden[mask.bool()].float().cpu()
            states += rows.split([len(sequence) for sequence in batch])
            computed += ids.numel()
            bar.update(len(rows))
    return Pass(computed, time.perf_counter() - start, states, np.empty(0))


def _packed(model: ErnieMModel, sequences: list[np.ndarray], progress: bool) -> Pass:
    """Run the padding-free model in batches of at most `BATCH_TOKENS` tokens."""

    def compute(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = model(batch, return_packed=True).last_hidden_state
        return rows.float(), batch.mean(rows)

    start = time.perf_counter()
    rows = [Row(sequence) for sequence in sequences]
    bar = "Padding-free".ljust(12) if progress else None
    states: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    vectors = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
    for indices, (found, means) in Runner(model, BATCH_TOKENS).as_completed(rows, compute, progress=bar):
        vectors[indices] = means.numpy()
        for index, part in zip(indices, found.split([len(sequences[index]) for index in indices]), strict=True):
            states[index] = part
    seconds = time.perf_counter() - start
    return Pass(sum(map(len, sequences)), seconds, states, vectors)


def _table(padded: Pass, packed: Pass) -> list[str]:
    real = packed.computed
    pairs = zip(packed.states, padded.states, strict=True)
    largest = max((fast - slow).abs().max().item() for fast, slow in pairs)
    rows = [("", "reference, padded", "padding-free")]
    for name, form in (
        ("tokens computed", lambda p: f"{p.computed:,}"),
        ("of them padding", lambda p: f"{1 - real / p.computed:.1%}"),
        ("seconds", lambda p: f"{p.seconds:.2f}"),
        ("real tokens/s", lambda p: f"{real / p.seconds:,.0f}"),
        ("speed", lambda p: f"{padded.seconds / p.seconds:.1f}x"),
    ):
        rows.append((name, form(padded), form(packed)))
    rows.append(("largest difference", "", f"{largest:.1e}"))
    line = "-" * 56
    body = [f"{name:<20}{left:>19}{right:>17}" for name, left, right in rows]
    return ["", body[0], line, *body[1:], line, ""]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads)"
