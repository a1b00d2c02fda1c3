"""ErnieM's tokenizer: SentencePiece pieces, cut further at CJK characters, punctuation and digits. Needs no torch.

Model: Ouyang et al., arXiv 2012.15674. Behaviour: `ErnieMTokenizer` of transformers 4.40.2, the last release
with this class; docstrings name the differences.
"""

import os
from collections.abc import Sequence
from itertools import count, groupby
from typing import Any

import numpy as np
from tokenizers import normalizers
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType

from ..auto_map import SelfLoadingTokenizer
from .alignment import UNDERLINE
from .encodings import Encodings, Frame, frame
from .memory import without_collections
from .parts import AddedTokens, Parts
from .samples import Source, Words, read_samples
from .segmentation import Ids, Segmenter, Segments
from .vocabulary import MAX_TOKENS, check_file, load_sentencepiece, load_vocab, max_length_of_folder
from .windows import Truncation, windows_of

VOCAB_FILES_NAMES = {"vocab_file": "vocab.txt", "sentencepiece_model_ckpt": "sentencepiece.bpe.model"}


COLUMNS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
"""Name in an `Encoding` of what a batch's key holds."""


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
        # datasets empties what has this name before it hashes a tokenizer: its fingerprints outlive the first use.
        self.cache: dict[str, Any] = {}
        self.do_lower_case = do_lower_case
        self.sp_model_kwargs = sp_model_kwargs or {}

        check_file("sentencepiece_model_ckpt", sentencepiece_model_ckpt, "a sentencepiece.bpe.model")
        self.sentencepiece_model_ckpt = os.fspath(sentencepiece_model_ckpt)
        with open(sentencepiece_model_ckpt, "rb") as file:
            source = f"sentencepiece_model_ckpt={self.sentencepiece_model_ckpt!r}"
            self.sp_model = load_sentencepiece(file.read(), source, self.sp_model_kwargs)
        if vocab_file is None:
            tokens = [self.sp_model.id_to_piece(i) for i in range(self.sp_model.get_piece_size())]
        else:
            tokens = load_vocab(vocab_file)
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
            kwargs["model_max_length"] = max_length_of_folder(resolved_vocab_files)
        try:
            return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)
        except ValueError as error:
            if resolved_vocab_files.get("sentencepiece_model_ckpt") is not None or "=None" not in str(error):
                raise
            name = VOCAB_FILES_NAMES["sentencepiece_model_ckpt"]
            raise OSError(f"{args[0]!r}: expected a folder or a model on the Hugging Face Hub with {name}") from error

    def __getstate__(self) -> dict[str, Any]:
        # The serialized model, not its path: a copy must work without the file.
        state = self.__dict__ | {"sp_model": self.sp_model.serialized_model_proto()}
        return state | {"cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        processor = load_sentencepiece(state["sp_model"], "pickled tokenizer", state["sp_model_kwargs"])
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

    @property
    def is_fast(self) -> bool:
        """True: offsets, words and windows are given, as by the tokenizers that are written in Rust."""
        return True

    @property
    def backend_tokenizer(self) -> "LowercaseSwitch":
        """The part of a Rust tokenizer that sentence-transformers sets to lowercase texts."""
        return LowercaseSwitch(self)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """`text`, lowercased outside special and added tokens if `do_lower_case`, and the other arguments.

        Raises:
            TypeError: `text` is not a str.
        """
        if not isinstance(text, str):
            raise TypeError(f"text={text!r}: expected str, got {type(text).__name__}")
        return self._added.lowercase(text)[0] if self.do_lower_case else text, kwargs

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Tokens of a text, or of a pair, with "▁" for the space before a word.

        Raises:
            TypeError: a text is not a str.
        """
        for name, value in (("text", text), ("pair", pair)):
            if not isinstance(value, str) and (name == "text" or value is not None):
                raise TypeError(f"{name}={value!r}: expected str, got {type(value).__name__}")
        split_special_tokens = bool(kwargs.get("split_special_tokens", self.split_special_tokens))
        segments = self._segment([text] if pair is None else [text, pair], split_special_tokens)
        tokens: list[str] = segments.tokens
        if add_special_tokens:
            first = segments.bounds[1]
            second = None if pair is None else tokens[first:]
            return frame(tokens[:first], second, self.cls_token, self.sep_token)
        return tokens

    @property
    def _segmenter(self) -> Segmenter:
        cache = self.cache
        if "segmenter" not in cache:
            cache["segmenter"] = Segmenter(self.sp_model, self.sp_model_kwargs, self.vocab)
        return cache["segmenter"]

    @property
    def _added(self) -> AddedTokens:
        size, found = self.cache.get("added", (-1, None))
        if size != len(self.tokens_trie._tokens):  # tokens never leave it
            found = AddedTokens(self.tokens_trie, self._added_tokens_encoder, self._added_tokens_decoder)
            self.cache["added"] = len(self.tokens_trie._tokens), found
        return found

    def _segment(self, sources: Sequence[Source], split_special_tokens: bool) -> Segments | Ids:
        added, lower, split = self._added, self.do_lower_case, not split_special_tokens
        texts = [source for source in sources if isinstance(source, str)]
        if len(texts) == len(sources) and not lower and not (split and added.found_in("\n".join(texts))):
            return Segments(self._segmenter, Parts.of_texts(texts), self.unk_token_id)
        parts = Parts()
        for source in sources:
            size = 0
            if isinstance(source, str):
                size = added.add_parts(parts, source, lower, split)
            elif isinstance(source, Words):
                for number, word in enumerate(source.words):
                    n_parts = added.add_parts(parts, word, lower, split)
                    parts.words += [number] * n_parts
                    size += n_parts
            parts.sizes.append(size)
        segments = Segments(self._segmenter, parts, self.unk_token_id)
        if not any(isinstance(source, list) for source in sources):
            return segments
        of_texts = np.split(segments.ids, segments.bounds[1:-1])
        given = [
            np.array(s, dtype=np.int64) if isinstance(s, list) else ids
            for s, ids in zip(sources, of_texts, strict=True)
        ]
        return Ids(given)

    @without_collections
    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError("sanitize_control_tokens=True: expected False; ErnieM has no chats to sanitize")
        firsts, pairs, is_batched = read_samples(text, text_pair, is_split_into_words)
        seconds: list[int | None] | None = None
        sources = firsts
        if pairs is not None:
            numbers = count(len(firsts))
            seconds = [None if pair is None else next(numbers) for pair in pairs]
            sources = [*firsts, *(pair for pair in pairs if pair is not None)]
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        segments = self._segment(sources, split_special_tokens)
        side = self.truncation_side
        truncation = None
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
            truncation = Truncation(
                truncation_strategy.value, max_length, add_special_tokens, stride, side, return_overflowing_tokens
            )
        windows = windows_of(segments.bounds, len(firsts), seconds, truncation)
        width: int | None = 0
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            width = None if padding_strategy == PaddingStrategy.LONGEST else max_length
        padding_side = padding_side or self.padding_side
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side={padding_side!r}: expected 'right' or 'left'")
        framing = Frame(
            (self.cls_token_id, self.cls_token),
            (self.sep_token_id, self.sep_token),
            (self.pad_token_id, self.pad_token),
            self.pad_token_type_id,
            add_special_tokens,
            width,
            pad_to_multiple_of or 1,
            padding_side,
        )
        encodings = Encodings(segments, windows, framing)
        longest = int(encodings.lengths.max(initial=0))
        if max_length is None and longest > self.model_max_length:
            self._eventual_warn_about_too_long_sequence([0] * longest, max_length, verbose)
        asked = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        names = [name for name, ask in asked.items() if (name in self.model_input_names if ask is None else ask)]
        as_arrays = return_tensors in ("np", "pt") and len(set(np.diff(encodings.bounds).tolist())) == 1
        data: dict[str, Any] = {}
        for name in names:
            data[name] = encodings.arrays(COLUMNS[name]) if as_arrays else encodings.lists(COLUMNS[name])
        if return_length:
            data["length"] = encodings.lengths.tolist()
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = windows.samples.tolist()
        if not is_batched and return_tensors is None and not return_overflowing_tokens:
            data = {name: values[0] for name, values in data.items()}
        n_sequences = 2 if seconds is not None and seconds[0] is not None else 1
        return BatchEncoding(data, encodings, return_tensors, n_sequences=n_sequences)

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

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The base class leaves offsets unpadded, which no tensor can then hold.
        padded: dict[str, Any] = super()._pad(encoded_inputs, *args, **kwargs)
        if "offset_mapping" in padded:
            side = kwargs.get("padding_side") or self.padding_side
            offsets = [tuple(span) for span in padded["offset_mapping"]]
            missing = [(0, 0)] * (len(padded["input_ids"]) - len(offsets))
            padded["offset_mapping"] = offsets + missing if side == "right" else missing + offsets
        return padded

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
        return frame(token_ids_0, token_ids_1, self.cls_token_id, self.sep_token_id)

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
        return frame([0] * len(token_ids_0), None if token_ids_1 is None else [0] * len(token_ids_1), 1, 1)

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 everywhere, or for a pair 0 for `[CLS] A` and 1 for `[SEP] [SEP] B [SEP]`, as in 4.40.2.

        ErnieM itself has no token types.
        """
        return frame(
            [0] * len(token_ids_0),
            None if token_ids_1 is None else [1] * len(token_ids_1),
            0,
            int(token_ids_1 is not None),
        )

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


class LowercaseSwitch:
    """Stands for a Rust tokenizer where its normaliser is read, or replaced by one that lowercases too."""

    def __init__(self, tokenizer: ErnieMTokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def normalizer(self) -> normalizers.Lowercase | None:
        """`Lowercase()` if the tokenizer lowercases, else None."""
        return normalizers.Lowercase() if self._tokenizer.do_lower_case else None

    @normalizer.setter
    def normalizer(self, value: normalizers.Normalizer) -> None:
        steps: list[normalizers.Normalizer] = [*value] if isinstance(value, normalizers.Sequence) else [value]  # type: ignore[misc]
        if not all(isinstance(step, normalizers.Lowercase) for step in steps):
            raise ValueError(f"normalizer={value!r}: expected Lowercase(), or a Sequence of it")
        self._tokenizer.do_lower_case = True
