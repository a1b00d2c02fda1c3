"""Engine: texts to vectors, labels, spans and scores, as many as there are.

encoder = Encoder.from_pretrained("intfloat/multilingual-e5-base")
vectors = encoder.encode(["Guten Tag!", "你好，世界"], prompt_name="query")
for label in encoder.stream(lines, task="classify"):
    ...
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .arguments import check_text, check_whole
from .classification import Classification, Reranking
from .embedding import Embedding, TokenEmbeddings
from .extraction import Extraction
from .loading import inner_folder, load_config, load_model, load_tokenizer
from .precision import auto_dtype
from .prepacking import prepack_weights
from .progress import progress_bar
from .projections import join_projections
from .quantisation import quantise_int8
from .question_answering import Answering, items_of
from .runner import Runner
from .settings import SentenceSettings, prepare, read_settings
from .stream import stream
from .tagging import Tagging
from .task import AnyTask
from .texts import find_prompt
from .zero_shot import ZeroShot

MANY_ITEMS = 1024
"""More items than these show a progress bar unless told otherwise."""
UNKNOWN_OPTION = re.compile(r"unexpected keyword argument ('\w+')")
"""How Python refuses an option that a task does not have; it names a class that the caller has never seen."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


class Encoder:
    """A checkpoint that computes any number of texts; made by `Encoder.from_pretrained`.

    Every method takes one item or any number of them and gives one result, or a list of them in the order of arrival.
    `stream` does the same in constant memory, for any iterable. A string's tokens are made in another thread while the
    model computes those before it; batches hold at most so many tokens, are sorted by length and never padded.

    One engine uses one device: make one for each GPU. Not for several threads at once.

    Args:
        model: a padding-free model in eval mode, with or without a head.
        tokenizer: of the model.
        settings: how vectors are made; None: the mean of a text's tokens.
        batch_tokens: most tokens of a batch; None: by the memory that is free now.

    Attributes:
        model, tokenizer, settings: as given.
        encoder: the model without its head.
        runner: runs the model.
        max_tokens: most tokens of a text, special ones included.
        device: of the model.
        dtype: name of what it computes in.
        architectures: names of the classes that the checkpoint says it holds.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: SentenceSettings | None = None,
        *,
        batch_tokens: int | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.settings = SentenceSettings() if settings is None else settings
        self.runner = Runner(model, batch_tokens)
        self.encoder = self.runner.encoder
        self.device: torch.device = self.runner.device
        self.dtype = str(self.encoder.dtype).removeprefix("torch.")
        self.architectures: list[str] = list(model.config.architectures or [type(model).__name__])
        limits = (self.encoder.limits.max_tokens, tokenizer.model_max_length, self.settings.max_seq_length)
        self.max_tokens: int = min(limit for limit in limits if limit is not None)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        batch_tokens: int | None = None,
    ) -> "Encoder":
        """Load a checkpoint: ErnieM, or another family that `padding_free` takes.

        What a sentence-transformers folder says of pooling, normalisation, prompts and lengths is honoured.

        Args:
            name: a folder with config.json, the weights and the tokenizer, or the id of one on the Hugging Face Hub.
            dtype: of the computation: "float32", "bfloat16" or "float16", or a torch.dtype; "auto": bfloat16 where the
                device has matrix units for it, else float32; "int8": linear layers in int8, on a CPU.
            device: "auto": a GPU if there is one.
            batch_tokens: most tokens of a batch; None: by the memory that is free.

        Raises:
            CheckpointError: a ValueError of one line: no such checkpoint, or one that can't be used.
            TypeError, ValueError: another argument that is not as described.
        """
        if not isinstance(name, str | os.PathLike):
            raise TypeError(f"name must be a folder, or the id of a checkpoint, got {type(name).__name__}")
        name = os.fspath(name)
        place = _check_device(device)
        kind = _check_dtype(dtype)
        settings = read_settings(name)
        folder = inner_folder(name, settings.model_folder)
        config = load_config(folder, any_family=True)
        tokenizer = load_tokenizer(folder, config)
        prepare(tokenizer, settings)
        weights = auto_dtype(place) if kind == "auto" else torch.float32 if kind == "int8" else getattr(torch, kind)
        model = load_model(folder, config, weights, place)
        if kind == "int8":
            model = quantise_int8(model)
        join_projections(model)
        prepack_weights(model)
        encoder = cls(model, tokenizer, settings, batch_tokens=batch_tokens)
        encoder.dtype = "int8" if kind == "int8" else encoder.dtype
        return encoder

    def encode(self, texts: str | Iterable[str], *, progress: bool | None = None, **options: Any) -> np.ndarray:
        """Turn texts into vectors.

        Args:
            texts: a text, or any number of them. Those of more than `max_tokens` tokens are cut.
            progress: show a progress bar on stderr; None: for many texts.
            options: `pooling`, `normalize`, `truncate_dim`, `prompt`, `prompt_name`, `truncation`: see
                `embedding.Embedding`.

        Returns:
            (len(texts), dim) float32, to a str (dim,). White space alone gives zeros.

        Raises:
            TypeError, ValueError: an argument that is not as described.
        """
        task: Any = self.task("encode", **options)
        if isinstance(texts, str):
            return task.compute(task.tokenize([texts]))[0]
        found: list[np.ndarray] = list(self._windows(task, texts, progress))
        return np.concatenate(found) if found else np.zeros((0, task.dim), dtype=np.float32)

    def classify(self, texts: Any, *, progress: bool | None = None, **options: Any) -> Any:
        """Label texts or pairs of texts; results and options: see `classification.Classification`.

        `prompt` and `prompt_name` as in `encode`; the default prompt is a CrossEncoder's.
        """
        return self._all("classify", texts, isinstance(texts, str), progress, options)

    def rerank(
        self, query: str, documents: Iterable[str], *, top_k: int | None = None, progress: bool | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Order documents by how well they answer a query, with a model that scores pairs.

        Args:
            query: a text.
            documents: any number of texts.
            top_k: most documents in the result; None: all.
            progress: show a progress bar on stderr; None: for many documents.
            options: see `classification.Reranking`; `prompt` and `prompt_name` as in `encode`, before the query.

        Returns:
            {"index": place of the document, "score": ...}, the best first.

        Raises:
            TypeError, ValueError: an argument that is not as described.
        """
        check_text("query", query)
        if top_k is not None:
            check_whole("top_k", top_k, 1)
        if isinstance(documents, str):
            raise TypeError("documents must be any number of texts, such as a list, got str")
        scores = self._all("rerank", [(query, text) for text in documents], False, progress, options)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return [{"index": place, "score": scores[place]} for place in order[:top_k]]

    def zero_shot(
        self, texts: str | Iterable[str], candidate_labels: str | Iterable[str], *, progress: bool | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Label texts by labels chosen now; options and results: see `zero_shot.ZeroShot`."""
        options["candidate_labels"] = candidate_labels
        return self._all("zero_shot", texts, isinstance(texts, str), progress, options)

    def tag(self, texts: str | Iterable[str], *, progress: bool | None = None, **options: Any) -> Any:
        """Find entities in texts; options and results: see `tagging.Tagging`."""
        return self._all("tag", texts, isinstance(texts, str), progress, options)

    def answer(self, question: Any, context: Any = None, *, progress: bool | None = None, **options: Any) -> Any:
        """Answer questions from contexts; arguments and results: see `question_answering.QuestionAnswering`."""
        items, is_single = items_of(question, context)
        return self._all("answer", items[0] if is_single else items, is_single, progress, options)

    def extract(self, texts: str | Iterable[str], schema: Any, *, progress: bool | None = None, **options: Any) -> Any:
        """Find what a schema names; options and results: see `extraction.Extraction`."""
        options["schema"] = schema
        return self._all("extract", texts, isinstance(texts, str), progress, options)

    def stream(
        self, items: Iterable[Any], task: str = "encode", *, progress: bool | None = False, **options: Any
    ) -> Iterator[Any]:
        """Results of any number of items, in order of arrival, in memory that their number does not change.

        Args:
            items: texts; pairs of texts to "classify" or, query first, to "rerank"; {"question": ..., "context": ...}
                to "answer". They are read by another thread, ahead of the results.
            task: "encode", "token_embeddings", "classify", "rerank", "zero_shot", "tag", "answer" or "extract".
            progress: show a progress bar on stderr.
            options: of the task, as of the method of its name.

        Raises:
            TypeError, ValueError: an argument or item that is not as described; results of the windows before that item
                come first.
        """
        for results in self._windows(self.task(task, **options), items, progress):
            yield from results

    def task(self, name: str, **options: Any) -> AnyTask:
        """The task of a name, for a scheduler of your own; see `stream` and `task.Task`.

        Raises:
            ValueError: an unknown name; the checkpoint lacks the head for it; or an option that is not as described.
        """
        if name not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
        head, make = TASKS[name]
        whole = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if head is not None and head not in type(whole).__name__:
            held = ", ".join(self.architectures)
            raise ValueError(f"{name} needs a model with a head for {head}; the architectures of this one: {held}")
        try:
            made: AnyTask = make(self, **options)
        except TypeError as error:
            unknown = UNKNOWN_OPTION.search(str(error))
            if unknown is None:
                raise
            raise TypeError(f"{name} has no option {unknown[1]}") from error
        return made

    def _all(self, name: str, items: Any, is_single: bool, progress: bool | None, options: dict[str, Any]) -> Any:
        task = self.task(name, **options)
        if is_single:
            return task.compute(task.tokenize([items]))[0]
        return [result for results in self._windows(task, items, progress) for result in results]

    def _windows(self, task: AnyTask, items: Iterable[Any], progress: bool | None) -> Iterator[Any]:
        if not isinstance(items, Iterable) or isinstance(items, str | bytes | Mapping):
            raise TypeError(f"items must be any number of them, such as a list, got {type(items).__name__}")
        total = len(items) if isinstance(items, Sized) else None
        shown = (total or 0) > MANY_ITEMS if progress is None else progress
        with progress_bar(total, "Computing", " texts", shown) as bar, self.runner.showing_rate(bar):
            for results in stream(task, items, self.runner.batch_tokens):
                bar.update(len(results))
                yield results


def _check_dtype(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return name


def _check_device(device: torch.device | str) -> torch.device:
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if not (place.type == "cpu" or (place.type == "cuda" and (place.index or 0) < cuda)):
        raise ValueError(f"device must be 'auto', 'cpu' or one of the {cuda} CUDA devices, got {str(device)!r}")
    return place


def _encode(encoder: Encoder, **options: Any) -> AnyTask:
    return Embedding(encoder.tokenizer, encoder.runner, encoder.settings, encoder.max_tokens, **options)


def _token_embeddings(encoder: Encoder, **options: Any) -> AnyTask:
    return TokenEmbeddings(encoder.tokenizer, encoder.runner, encoder.settings, encoder.max_tokens, **options)


def _head(task: Any) -> Any:
    """What makes a task that runs a head."""
    return lambda encoder, **options: task(
        encoder.model, encoder.tokenizer, encoder.runner, max_tokens=encoder.max_tokens, **options
    )


def _scored(task: Any) -> Any:
    """What makes a task whose scores may be those of a CrossEncoder's folder."""
    make = _head(task)

    def made(encoder: Encoder, *, prompt: str | None = None, prompt_name: str | None = None, **options: Any) -> AnyTask:
        settings = encoder.settings
        if settings.model_type != "CrossEncoder":  # whose prompts are those of vectors
            settings = replace(settings, default_prompt_name=None)
        found: AnyTask = make(
            encoder, prompt=find_prompt(settings, prompt, prompt_name),
            **({"activation": settings.activation} | options),
        )  # fmt: skip
        return found

    return made


TASKS: dict[str, tuple[str | None, Any]] = {
    "encode": (None, _encode),
    "token_embeddings": (None, _token_embeddings),
    "classify": ("SequenceClassification", _scored(Classification)),
    "rerank": ("SequenceClassification", _scored(Reranking)),
    "zero_shot": ("SequenceClassification", _head(ZeroShot)),
    "tag": ("TokenClassification", _head(Tagging)),
    "answer": ("QuestionAnswering", _head(Answering)),
    "extract": ("InformationExtraction", _head(Extraction)),
}
"""By name: the head that the model must have, part of its class's name, and what makes the task."""
