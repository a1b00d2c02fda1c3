"""`erniem-fast extract`: the records of each line, the forms of a schema, bad input in one line."""

import json
import shutil

import pytest
import torch
from helpers.command_line import TEXTS, assert_one_line, run
from safetensors.torch import load_file, save_file

from erniem_fast import ErnieMForInformationExtraction, information_extraction
from erniem_fast.cli import extract as cli

SCHEMA = {"时间": None, "Person": ["Tone [good, bad]"]}


@pytest.fixture(scope="module")
def uie(save, tmp_path_factory):
    """A checkpoint in which about every second token starts or ends a span, with a probability above 0.6."""
    folder = save(tmp_path_factory.mktemp("uie") / "tiny", "ErnieMForInformationExtraction")
    model = ErnieMForInformationExtraction.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(torch.randint(4, model.config.vocab_size, (20, 30)))
        for head, logits in ((model.linear_start, output.start_logits), (model.linear_end, output.end_logits)):
            head.bias.add_(0.5 - logits.median())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def extract(uie, tokenizer):
    return information_extraction(ErnieMForInformationExtraction.from_pretrained(uie).eval(), tokenizer)


def run_extract(texts, model, schema=SCHEMA, *options, stdin=None):
    schema = schema if isinstance(schema, str) else json.dumps(schema)
    return run("extract", texts, "--model", model, "--schema", schema, "--dtype", "float32", *options, stdin=stdin)


def assert_same(found, expected):
    """Equal but for the last digits of probabilities."""

    def rounded(results):
        return json.loads(json.dumps(results), parse_float=lambda digits: round(float(digits), 4))

    assert rounded(found) == rounded(expected)


def read(out):
    return [json.loads(line) for line in out.read_bytes().decode().split("\n")[:-1]]


def test_a_record_for_each_line(uie, extract, texts, tmp_path):
    out = tmp_path / "found.jsonl"
    result = run_extract(texts, uie, SCHEMA, "--threshold", "0.6", "--language", "en", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "Extracting: 100%" in result.stderr
    records = read(out)
    assert_same(records, extract(TEXTS, SCHEMA, threshold=0.6, language="en"))
    assert any(records)
    assert records[1] == records[3] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.jsonl", "texts.txt"]


def test_stdin_and_stdout(uie, extract):
    result = run_extract("-", uie, SCHEMA, "--batch-tokens", "1", stdin="今日は。\nTom\n")
    assert result.exit_code == 0, result.output
    assert_same([json.loads(line) for line in result.stdout.splitlines()], extract(["今日は。", "Tom"], SCHEMA))


@pytest.mark.parametrize("ending", [".json", ".schema", ""])
def test_a_schema_in_a_file(uie, extract, texts, tmp_path, ending):
    file = tmp_path / f"schema{ending}"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(SCHEMA, ensure_ascii=False, indent=1).encode())
    out = tmp_path / "found.jsonl"
    assert run_extract(texts, uie, str(file), "--out", out).exit_code == 0
    assert_same(read(out), extract(TEXTS, SCHEMA))


@pytest.mark.parametrize(
    ("value", "expected"),
    [('"时间"', "时间"), (' ["a[b,c]"]\n', ["a[b,c]"]), ('{"a": {"b": null}}', {"a": {"b": None}})],
)
def test_schemas_in_json(value, expected):
    assert cli.read_schema(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("时间", "'时间': No such file or directory; expected JSON that starts with"),
        ("a,b", "expected JSON"),
        (".", "Is a directory"),
        ("a\0b", "expected JSON"),
        ("", "expected JSON"),
        ("[", "is not JSON"),
        ('["a"] x', "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ('{"a": {"b": null, "b": "c"}}', "an object holds the name 'b' twice"),
        ("[]", "schema is empty"),
        ('["a", ""]', "schema[1] has the name ''"),
        ('{"a": 1}', "schema['a'] is of type int"),
        ('["a", "a"]', "schema holds the name 'a' twice"),
        ('["\\ud800"]', "holds a lone surrogate, '\\ud800' at 0"),
        ('["[b,c]"]', "expected name[option,option]"),
    ],
)
def test_schemas_that_are_refused(texts, value, message):
    assert_one_line(run_extract(texts, "nowhere", value), "--schema", message)


def test_files_that_hold_no_schema(texts, tmp_path):
    for name, content, message in (
        ("latin", b'["caf\xe9"]', "the file is not UTF-8"),
        ("number", b"7", "schema is of type int"),
        ("null", b"null", "schema is None"),
        ("empty", b"", "is not JSON"),
    ):
        (tmp_path / name).write_bytes(content)
        assert_one_line(run_extract(texts, "nowhere", str(tmp_path / name)), "--schema", message)


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--language", "de", "one of zh, en"),
        ("--threshold", "1", "at least 0 and below 1"),
        ("--threshold", "-0.1", "at least 0 and below 1"),
        ("--threshold", "nan", "at least 0 and below 1"),
        ("--threshold", "half", "at least 0 and below 1"),
        ("--dtype", "int4", "float32"),
        ("--batch-tokens", "0", "at least 1"),
        ("--device", "tpu", "auto, cpu, cuda"),
        ("--out", "found.json", "ends in .jsonl"),
    ],
)
def test_bad_options(texts, option, value, accepted):
    assert_one_line(run_extract(texts, "nowhere", SCHEMA, option, value), option, repr(value), accepted)


def test_a_folder_of_another_head(save, checkpoint, texts, tmp_path):
    other = save(tmp_path / "other", "ErnieMForQuestionAnswering")
    for folder, name in ((checkpoint, "ErnieMModel"), (other, "ErnieMForQuestionAnswering")):
        assert_one_line(run_extract(texts, folder), "--model", name, "a head for InformationExtraction")


def test_what_is_known_only_with_the_model(uie, extract, texts, tmp_path):
    out = tmp_path / "found.jsonl"
    out.write_bytes(b"old")
    for schema, message in (["Tom " * 30], "tokens; expected names of 1 to"), (["\u200b"], "of 0 tokens"):
        assert_one_line(run_extract(texts, uie, schema, "--out", out), "--schema", message)
    model = ErnieMForInformationExtraction.from_pretrained(uie)
    with torch.no_grad():
        model.linear_start.weight.fill_(float("nan"))
    folder = tmp_path / "nan"
    model.save_pretrained(folder)
    extract.tokenizer.save_pretrained(folder)
    result = run_extract(texts, folder, SCHEMA, "--out", out)
    assert result.exit_code == 2
    assert "Error: --model: model must give finite scores, got NaN" in result.stderr.splitlines()[-1]
    assert out.read_bytes() == b"old"


def test_a_checkpoint_without_the_pooler_that_nothing_reads(uie, extract, tmp_path):
    folder = shutil.copytree(uie, tmp_path / "poolerless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".pooler." not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    result = run_extract("-", folder, stdin=TEXTS[0])
    assert result.exit_code == 0, result.stderr
    assert_same(json.loads(result.stdout), extract(TEXTS[0], SCHEMA))
