"""Tokenizer folders: those of transformers 4.x, saving and loading, vocabularies, the longest text."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece as spm
from helpers.golden_tokenizer import MODEL, VOCAB, build, read_json
from helpers.paths import GOLDEN_TOKENIZER
from transformers import AutoTokenizer

from erniem_fast.tokenization import ErnieMTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build()


@pytest.fixture(scope="module")
def processor():
    return spm.SentencePieceProcessor(model_file=str(MODEL))


@pytest.fixture
def folder_4x(tmp_path):
    """A folder as 4.40.2's save_pretrained writes it: lowercasing, with added tokens."""
    for path in (MODEL, VOCAB, *(GOLDEN_TOKENIZER / "saved_by_4.40.2").glob("*.json")):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_folder_of_4x(folder_4x):
    tokenizer = ErnieMTokenizer.from_pretrained(folder_4x)
    for row in read_json(GOLDEN_TOKENIZER / "saved_by_4.40.2" / "golden.json"):
        ids = tokenizer(row["text"])["input_ids"]
        assert ids == row["input_ids"], row["text"]
        assert tokenizer.tokenize(row["text"]) == row["tokens"]
        assert tokenizer.decode(ids) == row["decoded"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["decoded_skip"]


def test_folder_of_early_4x(folder_4x):
    """Added tokens are read from added_tokens.json and special_tokens_map.json, the only files before 4.34."""
    expected = ErnieMTokenizer.from_pretrained(folder_4x)
    config = read_json(folder_4x / "tokenizer_config.json")
    del config["added_tokens_decoder"], config["additional_special_tokens"]
    (folder_4x / "tokenizer_config.json").write_text(json.dumps(config))
    early = ErnieMTokenizer.from_pretrained(folder_4x)
    assert early.get_vocab() == expected.get_vocab()
    assert early.all_special_tokens == expected.all_special_tokens
    assert early.encode("NewTok <e1>x [MASK]") == expected.encode("NewTok <e1>x [MASK]")


def test_bare_folder(tokenizer, tmp_path):
    shutil.copy(MODEL, tmp_path)
    shutil.copy(VOCAB, tmp_path)
    bare = ErnieMTokenizer.from_pretrained(tmp_path)
    assert bare.get_vocab() == tokenizer.get_vocab()
    assert bare.encode("Hello, 12 中文", "pair") == tokenizer.encode("Hello, 12 中文", "pair")


def test_without_vocab_file(processor, tmp_path):
    """Ids of the SentencePiece model, then the special tokens, in 4.40.2's order."""
    tokenizer = ErnieMTokenizer(MODEL)
    size = processor.get_piece_size()
    assert tokenizer.vocab_size == size
    assert len(tokenizer) == size + 5
    assert tokenizer.convert_tokens_to_ids(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]) == [*range(size, size + 5)]
    ids = [processor.piece_to_id(piece) for piece in ("▁Hello", ",", "▁my")]
    assert tokenizer.encode("Hello, my") == [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    assert tokenizer.convert_tokens_to_ids("no such piece") == tokenizer.unk_token_id  # None in 4.40.2
    tokenizer.save_pretrained(tmp_path)
    assert ErnieMTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def folder_with(path, max_length=None, rows=None):
    """Tokenizer folder with these values in tokenizer_config.json and config.json; None: no such file."""
    path.mkdir()
    for file in (MODEL, VOCAB):
        shutil.copy(file, path)
    if max_length is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": max_length}))
    if rows is not None:
        (path / "config.json").write_text(json.dumps({"model_type": "ernie_m", "max_position_embeddings": rows}))
    return path


def assert_cuts_to(tokenizer, length):
    assert tokenizer.model_max_length == length
    text = "Hello, my dog is cute. " * (length // 6)
    assert len(tokenizer(text)["input_ids"]) > length
    assert len(tokenizer(text, truncation=True)["input_ids"]) == length
    assert len(tokenizer(text, text, truncation=True)["input_ids"]) == length
    assert len(tokenizer("Hello", padding="max_length")["input_ids"]) == length


def test_longest_text_by_default(tokenizer):
    assert_cuts_to(tokenizer, 512)
    assert_cuts_to(build(model_max_length=None), 512)
    assert_cuts_to(build(model_max_length=600), 600)
    assert_cuts_to(build(max_len=70), 70)


@pytest.mark.parametrize(
    ("max_length", "rows", "expected"),
    [
        (None, None, 512),
        (int(1e30), None, 512),
        (1e30, 514, 512),
        (514, None, 512),
        (514, 514, 512),
        (1024, None, 512),
        (128, None, 128),
        (128, 514, 128),
        (None, 66, 64),
        (512, 66, 64),
        (None, 1026, 1024),
        (int(1e30), 1026, 1024),
        (514, 1026, 514),
    ],
)
def test_longest_text_of_a_folder(tmp_path, max_length, rows, expected):
    folder = folder_with(tmp_path / "a", max_length, rows)
    assert_cuts_to(ErnieMTokenizer.from_pretrained(folder), expected)


@pytest.mark.parametrize("load", [ErnieMTokenizer.from_pretrained, AutoTokenizer.from_pretrained])
def test_the_argument_comes_before_the_folder(tmp_path, load):
    folder = folder_with(tmp_path / "a", 514, 514)
    assert load(folder, model_max_length=700).model_max_length == 700
    tokenizer = load(folder, model_max_length=None)
    assert_cuts_to(tokenizer, 512)
    tokenizer.save_pretrained(folder)
    assert read_json(folder / "tokenizer_config.json")["model_max_length"] == 512
    assert_cuts_to(load(folder), 512)


def test_a_folder_of_4x_is_cut_to_the_models_limit(folder_4x):
    assert read_json(folder_4x / "tokenizer_config.json")["model_max_length"] > 1e29
    assert_cuts_to(ErnieMTokenizer.from_pretrained(folder_4x), 512)


def test_a_limit_that_is_lowered_is_reported(tmp_path, caplog):
    ErnieMTokenizer.from_pretrained(folder_with(tmp_path / "none"))
    ErnieMTokenizer.from_pretrained(folder_with(tmp_path / "unlimited", int(1e30)))
    assert not caplog.records
    ErnieMTokenizer.from_pretrained(folder_with(tmp_path / "long", 1024))
    assert "model_max_length is 512" in caplog.text
    assert "has 1024" in caplog.text


def full_tokenizer():
    options = {"enable_sampling": False, "alpha": 0.3}
    tokenizer = build(do_lower_case=True, sp_model_kwargs=options, additional_special_tokens=["<ENT>"])
    tokenizer.add_tokens(["NewTok"])
    tokenizer.add_special_tokens({"mask_token": "<m>"})
    return tokenizer


def assert_same(copied, original):
    assert type(copied) is ErnieMTokenizer
    assert copied.get_vocab() == original.get_vocab()
    assert len(copied) == len(original)
    assert copied.special_tokens_map == original.special_tokens_map
    assert copied.all_special_ids == original.all_special_ids
    assert copied.do_lower_case == original.do_lower_case
    assert copied.sp_model_kwargs == original.sp_model_kwargs
    assert copied.model_input_names == original.model_input_names == ["input_ids", "attention_mask"]
    for text in ("HELLO NewTok<ENT> 12，中文 <m>", "[MASK] ΟΔΟΣ"):
        assert copied.encode(text, "pair") == original.encode(text, "pair")


def test_save_and_load(tmp_path):
    original = full_tokenizer()
    files = original.save_pretrained(tmp_path / "a")
    assert read_json(tmp_path / "a" / "tokenizer_config.json")["tokenizer_class"] == "ErnieMTokenizer"
    assert {Path(file).name for file in files} >= {
        "tokenizer_config.json",
        "vocab.txt",
        "sentencepiece.bpe.model",
    }
    loaded = ErnieMTokenizer.from_pretrained(tmp_path / "a")
    assert_same(loaded, original)
    loaded.save_pretrained(tmp_path / "a")  # over the files that it came from
    assert_same(ErnieMTokenizer.from_pretrained(tmp_path / "a"), original)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copies_need_no_files(tmp_path, duplicate):
    full_tokenizer().save_pretrained(tmp_path / "a")
    original = ErnieMTokenizer.from_pretrained(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    copied = duplicate(original)
    assert_same(copied, original)
    copied.add_tokens(["another"])
    assert "another" not in original.get_vocab()
    copied.save_pretrained(tmp_path / "b")
    assert_same(ErnieMTokenizer.from_pretrained(tmp_path / "b"), copied)


def test_datasets_finds_the_results_of_a_tokenizer_that_was_used():
    hash_of = pytest.importorskip("datasets").fingerprint.Hasher.hash
    tokenizer, expected = full_tokenizer(), hash_of(full_tokenizer())
    ids = tokenizer("Wo ist der Bahnhof?", return_offsets_mapping=True)["input_ids"]
    assert hash_of(tokenizer) == expected
    assert tokenizer("Wo ist der Bahnhof?")["input_ids"] == ids
    tokenizer.add_tokens(["another"])
    assert hash_of(tokenizer) != expected


@pytest.mark.parametrize("files", [[], ["vocab.txt"], ["vocab.txt", "tokenizer_config.json"]])
def test_a_folder_without_the_model_is_named(tmp_path, files):
    full_tokenizer().save_pretrained(tmp_path / "full")
    (tmp_path / "part").mkdir()
    for file in files:
        shutil.copy(tmp_path / "full" / file, tmp_path / "part")
    with pytest.raises(OSError, match=r"part': expected a folder or .* with sentencepiece.bpe.model"):
        ErnieMTokenizer.from_pretrained(tmp_path / "part")


def test_save_vocabulary(tokenizer, tmp_path):
    plain = tokenizer.save_vocabulary(str(tmp_path / "new"))
    assert plain == (str(tmp_path / "new" / "vocab.txt"), str(tmp_path / "new" / "sentencepiece.bpe.model"))
    prefixed = tokenizer.save_vocabulary(str(tmp_path), filename_prefix="x")
    assert prefixed == (str(tmp_path / "x-vocab.txt"), str(tmp_path / "x-sentencepiece.bpe.model"))
    for vocab_file, model_file in (plain, prefixed):
        assert Path(vocab_file).read_bytes() == VOCAB.read_bytes()
        assert Path(model_file).read_bytes() == MODEL.read_bytes()


@pytest.mark.parametrize("config", [None, {"model_type": "ernie_m"}])
def test_auto_tokenizer(folder_4x, config):
    """`import erniem_fast` registers the class; without config.json, tokenizer_config.json names it."""
    if config is not None:
        (folder_4x / "config.json").write_text(json.dumps(config))
    assert_same(AutoTokenizer.from_pretrained(folder_4x), ErnieMTokenizer.from_pretrained(folder_4x))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"unk_token='\[UNK\]': expected a token of vocab_file="),
        ("[CLS]\n[PAD]\n[SEP]\n[UNK]\na\n", r"mask_token='\[MASK\]'"),
    ],
)
def test_bad_vocab(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        ErnieMTokenizer(MODEL, path)


REPEATED = "[CLS]\n[PAD]\n▁a\n[SEP]\n\n[UNK]\n▁a\n\n[MASK]\n▁a\n▁the\n"


def test_last_line_of_a_repeated_token_counts(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[CLS]\n[PAD]\n▁a\n[SEP]\n[UNK]\n▁a\n[MASK]\n")
    assert ErnieMTokenizer(MODEL, path)("a").input_ids == [0, 5, 3]


def test_repeated_tokens_keep_their_lines(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(REPEATED, encoding="utf-8", newline="\n")
    tokenizer = ErnieMTokenizer(MODEL, path)
    assert tokenizer("a the a").input_ids == [0, 9, 10, 9, 3]
    assert tokenizer.vocab_size == len(tokenizer) == 11
    assert tokenizer.convert_ids_to_tokens([2, 6, 9, 10]) == ["▁a", "▁a", "▁a", "▁the"]
    for turn in ("once", "twice"):
        tokenizer.save_pretrained(tmp_path / turn)
        assert (tmp_path / turn / "vocab.txt").read_text(encoding="utf-8") == REPEATED
        again = ErnieMTokenizer.from_pretrained(tmp_path / turn)
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again("a the [MASK]").input_ids == [0, 9, 10, 8, 3]
        tokenizer = again


def test_tokens_added_to_a_vocabulary_with_repeated_tokens_take_new_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(REPEATED, encoding="utf-8")
    tokenizer = ErnieMTokenizer(MODEL, path)
    assert tokenizer.add_tokens(["<one>", "▁the"]) == 1
    assert tokenizer.convert_tokens_to_ids(["<one>", "▁the", "▁a"]) == [11, 10, 9]
    assert sorted(tokenizer.get_vocab().values()) == [*range(12)]
    assert len(tokenizer) == 12
    tokenizer.save_pretrained(tmp_path / "saved")
    again = ErnieMTokenizer.from_pretrained(tmp_path / "saved")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("a<one>").input_ids == tokenizer("a<one>").input_ids == [0, 9, 11, 3]
