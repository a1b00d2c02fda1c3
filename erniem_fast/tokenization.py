"""ErnieM's tokenizer: SentencePiece pieces, cut further at CJK characters, punctuation and digits. Needs no torch.

Model: Ouyang et al., arXiv 2012.15674. Behaviour: `ErnieMTokenizer` of transformers 4.40.2, the last release
with this class; docstrings name the differences.
"""

import json
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import sentencepiece as spm
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import LARGE_INTEGER

from .auto_map import SelfLoadingTokenizer
from .configuration import POSITION_OFFSET

logger = logging.getLogger(__name__)

MAX_TOKENS = 512
"""Largest number of tokens, special ones included, that the published models take."""

UNDERLINE = "▁"  # SentencePiece's mark for the space before a word
PUNCTUATION = frozenset(",;:.?!~，；：。？！《》【】")
VOCAB_FILES_NAMES = {"vocab_file": "vocab.txt", "sentencepiece_model_ckpt": "sentencepiece.bpe.model"}


def _split_piece(piece: str) -> tuple[str, ...]:
    """Tokens of one SentencePiece piece other than a lone "▁": "▁abc12，中" -> ("▁abc", "12", "，", "中").

    Each CJK character (U+4E00..9FFF) and each of `PUNCTUATION` is one token; digits (`str.isdigit`) are split from
    the rest.
    """
    cuts = {0, len(piece)}
    for i, char in enumerate(piece):
        if char in PUNCTUATION or "\u4e00" <= char <= "\u9fff":
            cuts |= {i, i + 1}
        elif i > 0 and char != UNDERLINE and char.isdigit() != piece[i - 1].isdigit():
            cuts.add(i)
    spans = pairwise(sorted(cuts))
    # Cuts leave bare "▁"s. They are dropped, except at the end: 4.40.2 keeps what follows the last cut.
    return tuple(piece[start:end] for start, end in spans if piece[start:end] != UNDERLINE or end == len(piece))


# Splitting takes nearly all of the tokenizer's time, and a piece gives the same tokens everywhere. Long pieces, runs
# of unseen characters, rarely come back: they are not cached.
_LONGEST_CACHED_PIECE = 32
_split_piece_cached = lru_cache(maxsize=2**16)(_split_piece)


def _split_pieces(pieces: Sequence[str]) -> list[str]:
    """Tokens of a text's SentencePiece pieces.

    A lone "▁" stays only where it is not first and the next piece does not start with "▁". As the last piece
    (IndexError in 4.40.2) it precedes nothing and is dropped.
    """
    tokens: list[str] = []
    for i, piece in enumerate(pieces):
        if piece == UNDERLINE:
            if 0 < i < len(pieces) - 1 and not pieces[i + 1].startswith(UNDERLINE):
                tokens.append(UNDERLINE)
        else:
            split = _split_piece_cached if len(piece) <= _LONGEST_CACHED_PIECE else _split_piece
            tokens.extend(split(piece))
    return tokens


def _check_file(argument: str, path: str | os.PathLike, accepted: str) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{argument}={path!r}: expected the path of {accepted}")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{argument}={os.fspath(path)!r}: no such file; expected {accepted}")


def _load_vocab(path: str | os.PathLike) -> list[str]:
    """Tokens of a UTF-8 file with one token a line; a token's id is its line number, from 0."""
    _check_file("vocab_file", path, "a vocab.txt, one token a line")
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"vocab_file={os.fspath(path)!r}: expected UTF-8 text ({error})") from error


def _load_sentencepiece(proto: bytes, source: str, kwargs: dict[str, Any]) -> spm.SentencePieceProcessor:
    """SentencePiece model from its serialized form; `source` names it in errors."""
    try:
        processor = spm.SentencePieceProcessor(**kwargs)
    except TypeError as error:
        accepted = f"keyword arguments of sentencepiece.SentencePieceProcessor ({error})"
        raise ValueError(f"sp_model_kwargs={kwargs!r}: expected {accepted}") from error
    try:
        processor.LoadFromSerializedProto(proto)
    except RuntimeError as error:
        raise ValueError(f"{source}: expected a SentencePiece model ({error})") from error
    return processor


def _read_json(path: str | None) -> dict[str, Any]:
    """A JSON file's object; empty if there is no such file."""
    if path is None or not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return dict(json.load(file))


def _max_length_of_folder(files: dict[str, str | None]) -> int:
    """`model_max_length` of a folder's tokenizer_config.json, cut to what the folder's model takes."""
    given = _read_json(files.get("tokenizer_config_file")).get("model_max_length")
    model_file = files.get("sentencepiece_model_ckpt")
    config = _read_json(model_file and os.path.join(os.path.dirname(model_file), "config.json"))
    limit = config.get("max_position_embeddings", MAX_TOKENS + POSITION_OFFSET) - POSITION_OFFSET
    if given is not None and limit < given < LARGE_INTEGER:
        logger.warning(
            "model_max_length is %d, the most tokens that the model takes; tokenizer_config.json has %d. "
            "The argument model_max_length of from_pretrained overrides both.", limit, given,
        )  # fmt: skip
    return limit if given is None else min(given, limit)


class ErnieMTokenizer(SelfLoadingTokenizer, PreTrainedTokenizer):
    """Tokenizer of ErnieM: ids of `[CLS] A [SEP]`, or of `[CLS] A [SEP] [SEP] B [SEP]` for a pair.

    The ids are those of transformers 4.40.2. Unlike there, `attention_mask` is returned by default.

    Args:
        sentencepiece_model_ckpt: path of the SentencePiece model.
        vocab_file: path of the vocabulary, one token a line; the line number, from 0, is the id (of a repeated
            token the last). Without it, ids are the SentencePiece model's own, and the special tokens that it
            lacks come after them.
        do_lower_case: lowercase text, but neither special nor added tokens.
        encoding: kept for 4.x folders, and without effect as in 4.40.2: the vocabulary is always UTF-8.
        unk_token, sep_token, pad_token, cls_token, mask_token: special tokens, to be found in `vocab_file`
            if given, since ids past its end are past the model's embedding; `add_special_tokens` adds others.
        sp_model_kwargs: arguments of `sentencepiece.SentencePieceProcessor`. `{"enable_sampling": True,
            "nbest_size": 64, "alpha": 0.1}` samples another segmentation at every call.
        kwargs: those of `PreTrainedTokenizer`. `model_max_length`, the tokens that `truncation=True` leaves, special
            ones included, is 512 by default, the limit of the published models (4.40.2: no limit). `from_pretrained`
            reads it from the folder; a missing value, or one above the model's limit such as 4.x's 1e30 or 514,
            becomes that limit: `max_position_embeddings` - 2 of the folder's config.json, or 512 without one.
            As an argument it counts as it is.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file does not hold what its argument names, a special token is None or not in `vocab_file`,
            or SentencePiece has no such argument as one in `sp_model_kwargs`.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]
    # Provided by the base class's __getattr__.
    unk_token: str
    unk_token_id: int
    sep_token_id: int
    cls_token_id: int

    def __init__(
        self,
        sentencepiece_model_ckpt: str | os.PathLike,
        vocab_file: str | os.PathLike | None = None,
        do_lower_case: bool = False,
        encoding: str = "utf8",
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(sp_model_kwargs, dict | None):
            raise ValueError(f"sp_model_kwargs={sp_model_kwargs!r}: expected a dict or None")
        self.do_lower_case = do_lower_case
        self.sp_model_kwargs = sp_model_kwargs or {}

        _check_file("sentencepiece_model_ckpt", sentencepiece_model_ckpt, "a sentencepiece.bpe.model")
        self.sentencepiece_model_ckpt = os.fspath(sentencepiece_model_ckpt)
        with open(sentencepiece_model_ckpt, "rb") as file:
            source = f"sentencepiece_model_ckpt={self.sentencepiece_model_ckpt!r}"
            self.sp_model = _load_sentencepiece(file.read(), source, self.sp_model_kwargs)
        if vocab_file is None:
            tokens = [self.sp_model.id_to_piece(i) for i in range(self.sp_model.get_piece_size())]
        else:
            tokens = _load_vocab(vocab_file)
        # Of a repeated token the last line counts, as in 4.40.2; every line keeps its id.
        self.vocab = {token: index for index, token in enumerate(tokens)}
        self.reverse_vocab = dict(enumerate(tokens))
        # The base class numbers new tokens from the number of names: each id needs a name of its own.
        self._repeated = {f"{token}\n{i}": i for i, token in enumerate(tokens) if self.vocab[token] != i}

        names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        values = (unk_token, sep_token, pad_token, cls_token, mask_token)
        special_tokens = dict(zip(names, values, strict=True))
        if kwargs.get("model_max_length", kwargs.get("max_len")) is None:
            kwargs["model_max_length"] = MAX_TOKENS
        added_tokens = {str(token) for token in kwargs.get("added_tokens_decoder", {}).values()}
        for name, token in special_tokens.items():
            if token is None:
                raise ValueError(f"{name}=None: expected a token; ErnieM needs it")
            if vocab_file is not None and str(token) not in self.vocab and str(token) not in added_tokens:
                where = f"vocab_file={os.fspath(vocab_file)!r} (`add_special_tokens` adds new ones)"
                raise ValueError(f"{name}={str(token)!r}: expected a token of {where}")

        super().__init__(
            do_lower_case=do_lower_case,
            encoding=encoding,
            sp_model_kwargs=self.sp_model_kwargs,
            **special_tokens,
            **kwargs,
        )

    @classmethod
    def _from_pretrained(
        cls, resolved_vocab_files: dict[str, str | None], *args: Any, **kwargs: Any
    ) -> "ErnieMTokenizer":
        if kwargs.get("model_max_length", kwargs.get("max_len")) is None:
            kwargs["model_max_length"] = _max_length_of_folder(resolved_vocab_files)
        return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # The serialized model, not its path: a copy must work without the file.
        return self.__dict__ | {"sp_model": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        processor = _load_sentencepiece(state["sp_model"], "pickled tokenizer", state["sp_model_kwargs"])
        self.__dict__.update(state | {"sp_model": processor})

    @property
    def vocab_size(self) -> int:
        """Number of ids without added tokens, repeated lines of the vocabulary included."""
        return len(self.reverse_vocab)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included, in a new dict.

        Earlier lines of a repeated token, which no text gives, are named "token\\nid".
        """
        return self.vocab | self._repeated | self._added_tokens_encoder

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """`text`, lowercased outside special and added tokens if `do_lower_case`, and the other arguments.

        Raises:
            TypeError: `text` is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"text={text!r}: expected str, got {type(text).__name__}")
        if self.do_lower_case:
            # As lowercasing each character alone, as 4.40.2 does: a final "Σ" becomes "σ", not "ς".
            text = "".join(
                part if part in self._added_tokens_encoder else part.replace("Σ", "σ").lower()
                for part in self.tokens_trie.split(text)
            )
        return text, kwargs

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        options = self.sp_model_kwargs
        try:
            if options.get("enable_sampling") is True:
                nbest_size = 64 if options.get("nbest_size") is None else options["nbest_size"]
                alpha = 0.1 if options.get("alpha") is None else options["alpha"]
                return _split_pieces(self.sp_model.SampleEncodeAsPieces(text, nbest_size, alpha))
            return _split_pieces(self.sp_model.EncodeAsPieces(text))
        except RuntimeError as error:
            raise ValueError(f"text={text[:100]!r}: expected text that UTF-8 can encode ({error})") from error

    def _encode_plus(self, *args: Any, return_offsets_mapping: bool = False, **kwargs: Any) -> BatchEncoding:
        if return_offsets_mapping:  # the base class ignores it in silence
            raise ValueError("return_offsets_mapping=True: expected False; offsets are not supported yet")
        return super()._encode_plus(*args, **kwargs)

    def _convert_token_to_id(self, token: str) -> int | None:
        index = self.vocab.get(token)
        if index is None:  # without a vocab_file [UNK] is an added token; 4.40.2 returned None
            unk_token = self.unk_token
            index = self.vocab.get(unk_token, self._added_tokens_encoder.get(unk_token))
        return index

    def _convert_id_to_token(self, index: int) -> str:
        return self.reverse_vocab.get(index, self.unk_token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Tokens joined, with spaces for "▁" and none at either end."""
        return "".join(tokens).replace(UNDERLINE, " ").strip()

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        # Spaces surround the user's added tokens, as in 4.40.2; the base class joins them without any.
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        added_tokens = self._added_tokens_encoder.keys() - self.special_tokens_map.values()
        parts: list[str] = []
        for is_added, group in groupby(tokens, key=added_tokens.__contains__):
            run = list(group)
            parts.extend(run if is_added else [self.convert_tokens_to_string(run)])
        text = (" " if spaces_between_special_tokens else "").join(parts)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids of `[CLS] A [SEP]` (len A + 2), or of `[CLS] A [SEP] [SEP] B [SEP]` (len A + len B + 4)."""
        cls_id, sep_id = self.cls_token_id, self.sep_token_id
        pair = [] if token_ids_1 is None else [sep_id, *token_ids_1, sep_id]
        return [cls_id, *token_ids_0, sep_id, *pair]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each special token of the formatted input, 0 for each token of the text.

        With `already_has_special_tokens`, `token_ids_0` is that input, and all special tokens count (4.40.2:
        only [CLS] and [SEP]) except [UNK], which replaces text.

        Raises:
            ValueError: `token_ids_1` is given with `already_has_special_tokens`.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("token_ids_1: expected None with already_has_special_tokens=True")
            special_ids = set(self.all_special_ids) - {self.unk_token_id}
            return [int(int(token_id) in special_ids) for token_id in token_ids_0]
        pair = [] if token_ids_1 is None else [1, *[0] * len(token_ids_1), 1]
        return [1, *[0] * len(token_ids_0), 1, *pair]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 everywhere, or for a pair 0 for `[CLS] A` and 1 for `[SEP] [SEP] B [SEP]`, as in 4.40.2.

        ErnieM itself has no token types.
        """
        if token_ids_1 is None:
            return [0] * (len(token_ids_0) + 2)
        return [0] * (len(token_ids_0) + 1) + [1] * (len(token_ids_1) + 3)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, str]:
        """Write `[prefix-]vocab.txt` and `[prefix-]sentencepiece.bpe.model`, and return their paths.

        4.40.2 returned the first only, and left the prefix out of the second.
        """
        os.makedirs(save_directory, exist_ok=True)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab_file, model_file = (os.path.join(save_directory, prefix + name) for name in VOCAB_FILES_NAMES.values())
        with open(vocab_file, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{self.reverse_vocab[index]}\n" for index in range(self.vocab_size))
        with open(model_file, "wb") as file:
            file.write(self.sp_model.serialized_model_proto())
        return vocab_file, model_file
