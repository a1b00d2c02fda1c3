"""ONNX files in onnxruntime, held against the reference on each text alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erniem_fast.cli.verify import sample
from helpers.pairs import assert_close

LOWEST = torch.finfo(torch.float32).min
PER_SEQUENCE = ("pooler_output", "ErnieMForSequenceClassification", "ErnieMForMultipleChoice")


def real_rows(tokenizer: Any, max_tokens: int) -> list[Tensor]:
    """Token ids of real text in many languages, cut to lengths from 1 to `max_tokens`."""
    texts = [text for _, text in sample()[::8]]
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    lengths = [max_tokens, 1, 2, *(max_tokens // k for k in (2, 3, 4, 5, 6)), max_tokens, 7, 9, 3]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def columns_of(rows: list[Tensor], seq_len: int, how: str) -> list[Tensor]:
    """Columns of the rows' tokens in a batch padded on the right, on the left, or with holes."""
    if how == "right":
        return [torch.arange(len(row)) for row in rows]
    if how == "left":
        return [torch.arange(seq_len - len(row), seq_len) for row in rows]
    return [torch.randperm(seq_len)[: len(row)].sort().values for row in rows]


def assert_as_alone(session: Any, plain: Any, rows: list[Tensor], how: str, seq_len: int, tolerance: float) -> None:
    """A padded batch in onnxruntime gives each row what the reference gives it alone, and its filling at padding.

    Args:
        session: of onnxruntime.
        plain: the reference with the same parameters.
        rows: token ids.
        how: "right", "left" or "holes".
        seq_len: of the batch.
        tolerance: of `assert_close`.
    """
    name = type(plain).__name__
    ids, mask = torch.ones(2, len(rows), seq_len, dtype=torch.int64).unbind(0)
    mask = mask * 0
    places = columns_of(rows, seq_len, how)
    for line, (row, columns) in enumerate(zip(rows, places, strict=True)):
        ids[line, columns], mask[line, columns] = row, 1
    choices = name == "ErnieMForMultipleChoice"
    given = {"input_ids": ids, "attention_mask": mask}
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {key: (value[None] if choices else value).numpy() for key, value in given.items()})
    outputs = {key: torch.from_numpy(value)[0] if choices else torch.from_numpy(value)
               for key, value in zip(names, found, strict=True)}  # fmt: skip
    fill = LOWEST if "start_logits" in outputs else 0.0
    for line, (row, columns) in enumerate(zip(rows, places, strict=True)):
        one = {"input_ids": row[None], "position_ids": columns[None], "attention_mask": torch.ones_like(row)[None]}
        with torch.no_grad():
            alone = plain(**{key: value[None] if choices else value for key, value in one.items()})
        assert list(alone.keys()) == names
        for key, value in outputs.items():
            if key == "pooler_output" or name in PER_SEQUENCE:
                assert_close(value[line], alone[key].reshape(value[line].shape), tolerance)
            else:
                assert_close(value[line][columns], alone[key][0], tolerance)
                assert (value[line][mask[line] == 0] == fill).all()


def axes(values: list[Any]) -> dict[str, list[Any]]:
    """Names and shapes of a session's inputs or outputs."""
    return {value.name: value.shape for value in values}


def holds(file: Path, text: str) -> bool:
    return text.encode() in file.read_bytes()
