"""ErnieMTokenizer against the ids of transformers 4.40.2 and against a plain version of the splitting rule."""

import inspect
import pickle

import pytest
import sentencepiece as spm
from helpers.golden_tokenizer import MODEL, VOCAB, build, read_json
from helpers.paths import GOLDEN_TOKENIZER
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AddedToken, BatchEncoding

from erniem_fast.tokenization import ErnieMTokenizer
from erniem_fast.tokenization.parts import Parts
from erniem_fast.tokenization.segmentation import Segmenter, Segments

CLS, PAD, SEP, UNK, MASK = 0, 1, 2, 3, 16001


@pytest.fixture(scope="module")
def tokenizer():
    return build()


@pytest.fixture(scope="module")
def lower():
    return build(do_lower_case=True)


@pytest.fixture(scope="module")
def processor():
    return spm.SentencePieceProcessor(model_file=str(MODEL))


def test_golden(tokenizer):
    rows = read_json(GOLDEN_TOKENIZER / "golden.json")
    assert len(rows) == 685
    for row in rows:
        assert tokenizer(row["text"], row["pair"])["input_ids"] == row["input_ids"], row["text"]
        assert tokenizer.tokenize(row["text"]) == row["tokens"]


def test_golden_in_batches(tokenizer):
    rows = [row for row in read_json(GOLDEN_TOKENIZER / "golden.json") if row["pair"] is not None]
    encoded = tokenizer([row["text"] for row in rows], [row["pair"] for row in rows])
    assert encoded["input_ids"] == [row["input_ids"] for row in rows]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert encoded["attention_mask"] == [[1] * len(row["input_ids"]) for row in rows]


def split_plainly(pieces):
    tokens = []
    for i, piece in enumerate(pieces):
        if piece == "▁":
            is_last = i == len(pieces) - 1
            if i > 0 and not is_last and not pieces[i + 1].startswith("▁"):
                tokens.append("▁")
            continue
        token = ""
        for before, char in zip(" " + piece, piece, strict=False):
            alone = char in ",;:.?!~，；：。？！《》【】" or 0x4E00 <= ord(char) <= 0x9FFF
            is_first = token == ""
            if alone or (not is_first and char != "▁" and before.isdigit() != char.isdigit()):
                if token not in ("", "▁"):
                    tokens.append(token)
                token = ""
            if alone:
                tokens.append(char)
            else:
                token += char
        if token:
            tokens.append(token)
    return tokens


CHARS = (
    "▁ abzABΣςİßéñ019²①٣९１½,;:.?!~，；：。？！《》【】、「」·؟一中文鿿ꀀ㐀㿿𠀀あカ한иЖلाे\u0301\u200d\u3000😀-_'\"()"
)
PIECES = st.lists(st.text(CHARS, min_size=1, max_size=8) | st.just("▁") | st.text(min_size=1), max_size=8)
NO_SPECIAL_TOKEN = st.characters(exclude_categories=["Cs"], exclude_characters="[")
TEXTS = st.text(CHARS + "\t\n", max_size=40) | st.text(NO_SPECIAL_TOKEN, max_size=20)


class GivenPieces:
    """Stands for a SentencePiece model that knows some pieces and splits every text into the given ones."""

    def __init__(self, pieces, known):
        self.pieces, self.known = pieces, ["<unk>", *known]

    def get_piece_size(self):
        return len(self.known)

    def id_to_piece(self, ids):
        return [self.known[i] for i in ids]

    def unk_id(self):
        return 0

    def encode(self, texts, out_type, **options):
        ids = [self.known.index(piece) if piece in self.known else 0 for piece in self.pieces]
        return [ids if out_type is int else self.pieces for _ in texts]


def tokens_of(pieces, known=(), **options):
    segmenter = Segmenter(GivenPieces(pieces, known), options, {"▁": 7, "a": 8, "中": 9})
    segments = Segments(segmenter, Parts.of_texts(["text", "text"]), UNK)
    assert segments.ids.tolist() == [segmenter.vocab.get(token, UNK) for token in segments.tokens]
    size = segments.bounds[1]
    assert segments.bounds.tolist() == [0, size, 2 * size]
    assert segments.tokens[size:] == segments.tokens[:size]
    return segments.tokens[:size]


few = settings(max_examples=150)


@few
@given(PIECES)
@example(["▁", "a", "▁"])
@example(["▁", "▁", "中"])
@example(["a▁9", "▁9", "9▁a", "中▁文", "中▁", "▁▁"])
@example(["x" * 40 + "1中"])
def test_split_pieces(pieces):
    expected = split_plainly(pieces)
    assert tokens_of(pieces) == expected
    assert tokens_of(pieces, pieces) == expected
    assert tokens_of(pieces, pieces[::2]) == expected
    assert tokens_of(pieces, pieces[1::2], enable_sampling=True) == expected


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        ([], []),
        (["▁"], []),
        (["▁", "中"], ["中"]),
        (["a", "▁", "b"], ["a", "▁", "b"]),
        (["a", "▁", "▁b"], ["a", "▁b"]),
        (["a", "▁"], ["a"]),
        (["▁9"], ["9"]),
        (["▁中文x"], ["中", "文", "x"]),
        (["▁abc12，中"], ["▁abc", "12", "，", "中"]),
        (["1²a"], ["1²", "a"]),
        (["،؟"], ["،؟"]),
    ],
)
def test_split_pieces_by_hand(pieces, tokens):
    assert tokens_of(pieces) == tokens_of(pieces, pieces) == tokens


@few
@given(TEXTS)
@example("")
@example("3.14abc中文,混排42")
def test_tokenize(tokenizer, processor, text):
    tokens = tokenizer.tokenize(text)
    assert tokens == split_plainly(processor.encode(text, out_type=str))
    assert tokenizer.encode(text) == [CLS, *(tokenizer.vocab.get(token, UNK) for token in tokens), SEP]


def test_result_may_be_changed_by_the_caller(tokenizer):
    tokenizer.tokenize("Hello 12").clear()
    assert tokenizer.tokenize("Hello 12") == ["▁Hello", "12"]


# Formatting

IDS = st.lists(st.integers(4, 16000), max_size=12)


@few
@given(IDS, st.none() | IDS)
def test_format(tokenizer, first, second):
    pair = second is not None
    ids = tokenizer.build_inputs_with_special_tokens(first, second)
    assert ids == ([CLS, *first, SEP, SEP, *second, SEP] if pair else [CLS, *first, SEP])
    assert tokenizer.num_special_tokens_to_add(pair=pair) == len(ids) - len(first) - len(second or [])
    types = tokenizer.create_token_type_ids_from_sequences(first, second)
    assert types == [0] * (len(first) + (1 if pair else 2)) + [1] * (len(second) + 3 if pair else 0)
    mask = tokenizer.get_special_tokens_mask(first, second)
    assert mask == [int(i in (CLS, SEP)) for i in ids]
    assert mask == tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)


def test_special_tokens_mask_of_formatted_input(tokenizer):
    ids = [CLS, 500, MASK, UNK, SEP, SEP, 501, SEP, PAD, PAD]
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == [
        1,
        0,
        1,
        0,
        1,
        1,
        0,
        1,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="token_ids_1"):
        tokenizer.get_special_tokens_mask(ids, [5], already_has_special_tokens=True)


def test_special_token_ids(tokenizer):
    names = ("cls_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "mask_token_id")
    assert [getattr(tokenizer, name) for name in names] == [CLS, PAD, SEP, UNK, MASK]
    assert len(tokenizer) == tokenizer.vocab_size == 16002 == len(tokenizer.get_vocab())
    assert tokenizer.get_vocab() is not tokenizer.vocab
    assert tokenizer.is_fast


def test_pair_with_everything(tokenizer):
    encoded = tokenizer(
        "Hello, dog", "two", return_token_type_ids=True, return_special_tokens_mask=True, return_length=True
    )
    assert isinstance(encoded, BatchEncoding)
    a, b = (tokenizer.encode(text, add_special_tokens=False) for text in ("Hello, dog", "two"))
    assert encoded["input_ids"] == [CLS, *a, SEP, SEP, *b, SEP]
    assert encoded["token_type_ids"] == [0] * (len(a) + 1) + [1] * (len(b) + 3)
    assert encoded["special_tokens_mask"] == [1, *[0] * len(a), 1, 1, *[0] * len(b), 1]
    assert encoded["length"] == len(encoded["input_ids"])
    assert tokenizer.encode("Hello, dog", "two", add_special_tokens=False) == a + b


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(tokenizer, side):
    texts = ["Hello, my dog is cute", "Hi", ""]
    rows = [tokenizer.encode(text) for text in texts]
    encoded = tokenizer(texts, padding=True, padding_side=side, return_token_type_ids=True)
    for row, ids, mask, types in zip(
        rows, encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"], strict=True
    ):
        missing = len(rows[0]) - len(row)
        assert ids == (row + [PAD] * missing if side == "right" else [PAD] * missing + row)
        assert mask == [int(i != PAD) for i in ids]
        assert types == [0] * len(ids)
    fixed = tokenizer(texts, padding="max_length", max_length=16, pad_to_multiple_of=8, padding_side=side)
    assert {len(ids) for ids in fixed["input_ids"]} == {16}
    assert build(padding_side=side)(texts, padding=True)["input_ids"] == encoded["input_ids"]


def test_truncation(tokenizer):
    text, pair = "Hello, my dog is very cute and small", "one two three"
    a, b = (tokenizer.encode(part, add_special_tokens=False) for part in (text, pair))
    assert tokenizer.encode(text, truncation=True, max_length=5) == [CLS, *a[:3], SEP]
    left = build(truncation_side="left")
    assert left.encode(text, truncation=True, max_length=5) == [CLS, *a[-3:], SEP]
    room = 12 - 4 - len(b)
    expected = [CLS, *a[:room], SEP, SEP, *b, SEP]
    assert tokenizer.encode(text, pair, truncation="only_first", max_length=12) == expected
    longest_first = tokenizer.encode(text, pair, truncation="longest_first", max_length=10)
    assert len(longest_first) == 10
    assert longest_first.count(SEP) == 3
    short = build(model_max_length=6)
    assert len(short.encode(text, truncation=True)) == 6
    assert short.max_len_sentences_pair == 2


def test_pretokenized_and_ids(tokenizer):
    words = tokenizer(["Hello,", "dog"], is_split_into_words=True)["input_ids"]
    assert words == tokenizer("Hello, dog")["input_ids"]
    ids = tokenizer.encode("Hello, dog", add_special_tokens=False)
    assert tokenizer.encode(ids) == tokenizer.encode("Hello, dog")


def test_tensors(tokenizer):
    torch = pytest.importorskip("torch")
    encoded = tokenizer(["Hello", "my dog"], padding=True, return_tensors="pt")
    assert encoded["input_ids"].dtype == torch.int64
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == ["Hello", "my dog"]
    mask = tokenizer.get_special_tokens_mask(encoded["input_ids"][0], already_has_special_tokens=True)
    assert mask == [1, 0, 1, *[1] * (encoded["input_ids"].shape[1] - 3)]


def test_special_tokens_in_text(tokenizer):
    assert tokenizer.tokenize("fill [MASK], please[SEP]") == [
        *tokenizer.tokenize("fill "), "[MASK]", *tokenizer.tokenize(", please"), "[SEP]",
    ]  # fmt: skip
    assert tokenizer.encode("[MASK]", add_special_tokens=False) == [MASK]
    assert MASK not in tokenizer.encode("[MASK]", split_special_tokens=True)


def test_added_tokens(tokenizer):
    added = build(additional_special_tokens=["<ent>"])
    assert added.add_tokens(["qqq", AddedToken("Www", normalized=False), "▁the"]) == 2  # "▁the" is a piece
    assert added.convert_tokens_to_ids(["<ent>", "qqq", "Www"]) == [16002, 16003, 16004]
    assert len(added) == 16005
    assert added.vocab_size == 16002
    assert "<ent>" in added.all_special_tokens
    assert "qqq" not in added.all_special_tokens
    ids = added.encode("see <ent> or qqqWww", add_special_tokens=False)
    see, or_ = (tokenizer.encode(text, add_special_tokens=False) for text in ("see ", " or "))
    assert ids == [*see, 16002, *or_, 16003, 16004]
    assert added.decode(ids) == "see <ent> or qqq Www"
    assert added.decode(ids, skip_special_tokens=True) == "see or qqq Www"
    assert added.decode(ids, spaces_between_special_tokens=False) == "see<ent>orqqqWww"
    assert added.add_special_tokens({"mask_token": "<m>"}) == 1
    assert added.mask_token_id == 16005


def test_lowercase_leaves_added_tokens_alone():
    lower = build(do_lower_case=True, additional_special_tokens=["<ENT>"])
    lower.add_tokens([AddedToken("Www", normalized=False)])
    expected = [*lower.tokenize("hello "), "[MASK]", "<ENT>", "Www", *lower.tokenize(" [mask]")]
    assert lower.tokenize("HELLO [MASK]<ENT>Www [mask]") == expected
    assert lower.tokenize("HELLO") == lower.tokenize("hello")
    assert lower.encode("HELLO", split_special_tokens=True) == lower.encode("hello")


@few
@given(st.text(CHARS, max_size=30))
@example("ΟΔΟΣ İI")
def test_lowercase(tokenizer, lower, text):
    assert lower.tokenize(text) == tokenizer.tokenize("".join(char.lower() for char in text))


@few
@given(st.lists(st.text("abcdefghijklmnoprstuvwy", min_size=1, max_size=9), max_size=8).map(" ".join))
def test_decode_round_trip(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert UNK not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids)) == ids
    assert tokenizer.batch_decode([ids, ids], skip_special_tokens=True) == [text, text]


def test_decode(tokenizer):
    assert tokenizer.convert_tokens_to_string(["▁Hello", ",", "▁my", "▁", "dog"]) == "Hello, my dog"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(MASK) == "[MASK]"
    assert tokenizer.convert_ids_to_tokens([99999, -1]) == ["[UNK]", "[UNK]"]
    ids = tokenizer.encode("a , b", add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == tokenizer.decode(ids).replace(" ,", ",")


@pytest.mark.parametrize("options", [{}, {"nbest_size": -1, "alpha": 0.2}])
def test_sampling(options):
    sampling = build(sp_model_kwargs={"enable_sampling": True, **options})
    text = "internationalization of multilingual representation"
    samples = {tuple(sampling.tokenize(text)) for _ in range(30)}
    assert len(samples) > 3
    assert {"".join(tokens).lstrip("▁") for tokens in samples} == {text.replace(" ", "▁")}
    assert len({tuple(sampling(text)["input_ids"]) for _ in range(30)}) > 3
    assert len({tuple(pickle.loads(pickle.dumps(sampling)).tokenize(text)) for _ in range(10)}) > 1


def test_other_sentencepiece_options(tokenizer):
    assert build(sp_model_kwargs={"add_eos": True}).tokenize("Hello") == ["▁Hello", "</s>"]
    assert build(sp_model_kwargs={"enable_sampling": False}).tokenize("Hello 12") == tokenizer.tokenize("Hello 12")


def test_constructor_arguments_as_in_4x():
    parameters = list(inspect.signature(ErnieMTokenizer).parameters)
    assert parameters[:4] == ["sentencepiece_model_ckpt", "vocab_file", "do_lower_case", "encoding"]
    assert parameters[4:9] == ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
    assert parameters[9:] == ["sp_model_kwargs", "kwargs"]
    assert ErnieMTokenizer(str(MODEL), str(VOCAB), True).do_lower_case
    assert ErnieMTokenizer.vocab_files_names == {
        "vocab_file": "vocab.txt",
        "sentencepiece_model_ckpt": "sentencepiece.bpe.model",
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"sentencepiece_model_ckpt": "/none/m.model"},
            FileNotFoundError,
            "sentencepiece_model_ckpt='/none/m.model'",
        ),
        ({"sentencepiece_model_ckpt": None}, ValueError, "sentencepiece_model_ckpt=None: expected the path"),
        (
            {"sentencepiece_model_ckpt": VOCAB},
            ValueError,
            "sentencepiece_model_ckpt=.*expected a SentencePiece model",
        ),
        ({"vocab_file": "/none/vocab.txt"}, FileNotFoundError, "vocab_file='/none/vocab.txt'"),
        ({"vocab_file": 5}, ValueError, "vocab_file=5: expected the path"),
        ({"vocab_file": MODEL}, ValueError, "vocab_file=.*expected UTF-8 text"),
        ({"mask_token": "<m>"}, ValueError, "mask_token='<m>': expected a token of vocab_file="),
        ({"cls_token": None}, ValueError, "cls_token=None: expected a token"),
        ({"sp_model_kwargs": {"no_such": 1}}, ValueError, "sp_model_kwargs=.*no_such"),
        ({"sp_model_kwargs": "x"}, ValueError, "sp_model_kwargs='x': expected a dict"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ErnieMTokenizer(**{"sentencepiece_model_ckpt": MODEL, "vocab_file": VOCAB} | arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (5, "text=5: expected a str or a list of token ids, got int"),
        (None, "specify either `text`"),
        (b"bytes", "text=b'bytes': expected a str .*, got bytes"),
        (["a", None], r"text\[1\]=None: expected a str .*, got NoneType"),
        (["a", 5], r"text\[1\]=5: .*got int"),
        ([["a", "b", "c"]], r"text\[0\]=\['a', 'b', 'c'\]: expected a text or a pair of texts, got 3 texts"),
        ([["a", None]], r"text\[0\]=\['a', None\]: expected a str or a list of token ids, got list"),
        ([[]], r"text\[0\]=\[\]: expected"),
        ([[["a"]]], r"text\[0\]\[0\]=\['a'\]: .*got list"),
        ([1, "a"], r"text=\[1, 'a'\]: .*got list"),
        ({"a": 1}, "text={'a': 1}: .*got dict"),
    ],
)
def test_text_of_another_type(tokenizer, text, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(text)


def test_other_bad_text(tokenizer):
    with pytest.raises(ValueError, match=r"text_pair=\['b'\]: expected a str or a list of token ids, got list"):
        tokenizer("a", ["b"])
    with pytest.raises(TypeError, match="text=5: expected str, got int"):
        tokenizer.tokenize(5)
    with pytest.raises(ValueError, match=r"text=.*UTF-8"):
        tokenizer.tokenize("a lone surrogate: \ud800")
    with pytest.raises(ValueError, match="batch"):
        tokenizer(["a", "b"], ["c"])


def test_surrogates_are_named(tokenizer):
    for texts in (["fine", "a\udc80b"], [("fine", "a\udc80b")]):
        with pytest.raises(ValueError, match=r"text='a\\udc80b': .*UTF-8.*character 1 is '\\udc80'"):
            tokenizer(texts)


def test_odd_texts(tokenizer):
    assert tokenizer(" \t\n\u3000")["input_ids"] == [CLS, SEP]
    assert tokenizer("\ud55c\u0000\u0000")["input_ids"][-2:] == [UNK, SEP]
    assert tokenizer("😀 😀")["input_ids"] == [CLS, UNK, tokenizer.vocab["▁"], UNK, SEP]
    literal = tokenizer("[CLS] a [SEP]", add_special_tokens=False)
    assert literal["input_ids"] == [CLS, tokenizer.vocab["▁a"], SEP]
    assert literal.word_ids() == [0, 1, 2]


def test_long_texts(tokenizer):
    line = "Hello dog, 中文 12 😀x. "
    alone, many = tokenizer(line, add_special_tokens=False), 20_000
    encoded = tokenizer(line * many, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    assert encoded["input_ids"] == alone["input_ids"] * many
    first = tokenizer(line, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = len(line) * (many - 1)
    assert encoded["offset_mapping"][-len(first) :] == [(start + a, start + b) for a, b in first]


def test_threads_change_nothing(tokenizer, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    texts = [f"{row['text']} {row['pair']}" for row in read_json(GOLDEN_TOKENIZER / "golden.json")]
    asked = []
    encode = tokenizer.sp_model.encode

    class Recording:
        def __getattr__(self, name):
            return getattr(tokenizer.sp_model, name)

        def encode(self, batch, num_threads, **options):
            asked.append(num_threads)
            return encode(batch, num_threads=num_threads, **options)

    monkeypatch.setattr("erniem_fast.tokenization.segmentation._N_CORES", 3)
    monkeypatch.setattr(tokenizer._segmenter, "processor", Recording())
    several = tokenizer(texts)["input_ids"]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert tokenizer(texts)["input_ids"] == several
    tokenizer("short")
    assert asked[0] == 3
    assert set(asked[-3:]) == {1}


def test_tables_hold_the_vocabulary_only(tokenizer):
    """No text leaves anything behind."""
    table = tokenizer._segmenter.table
    before = (len(table.ids), len(table.texts), set(vars(tokenizer._segmenter)))
    tokenizer(["鿿" * 1000, "\U0001f600x" * 50])
    assert tokenizer._segmenter.table is table
    assert (len(table.ids), len(table.texts), set(vars(tokenizer._segmenter))) == before


def test_sentence_transformers_may_ask_for_lowercase():
    tokenizer = build()
    assert tokenizer.backend_tokenizer.normalizer is None
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase()])
    assert tokenizer.do_lower_case
    assert isinstance(tokenizer.backend_tokenizer.normalizer, normalizers.Lowercase)
    assert tokenizer.tokenize("HELLO") == tokenizer.tokenize("hello")
    with pytest.raises(ValueError, match=r"normalizer=.*expected Lowercase"):
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
