"""Smoke test of an installed package: model, tokenizer, pipeline and command line work on this machine's CPU.

Run it in a folder that holds no checkout, so that the installed package is what is imported.
"""

import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import transformers

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMForSequenceClassification, ErnieMTokenizer, reference

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXTS = ["Guten Tag!", "你好，世界", "How do you do? Very well, thank you."]


def main() -> None:
    """Raise or exit with an error where something does not work."""
    assert files("erniem_fast").joinpath("kernels", "attention.py").is_file(), "the package lacks its kernels"
    data = files("erniem_fast") / "demo_data" / "tokenizer"
    tokenizer = ErnieMTokenizer(str(data / "sentencepiece.bpe.model"), str(data / "vocab.txt"))
    config = ErnieMConfig(vocab_size=len(tokenizer), id2label={0: "yes", 1: "no"}, **SIZES)
    model = ErnieMForSequenceClassification(config).eval()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        plain = reference.ErnieMForSequenceClassification.from_pretrained(folder / "model").eval()
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, atol=1e-5, rtol=1e-5)
        model.train()(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()

        classify = transformers.pipeline("text-classification", model=str(folder / "model"))
        assert {result["label"] for result in classify(TEXTS)} <= {"yes", "no"}

        (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "erniem_fast.cli.main", "embed", "texts.txt"]
        subprocess.run([*command, "--model", "model", "--out", "vectors.npy"], cwd=folder, check=True)
        vectors = np.load(folder / "vectors.npy")
        assert vectors.shape == (len(TEXTS), SIZES["hidden_size"])
        assert np.abs(vectors).sum(1).all()
    print(f"erniem_fast {erniem_fast.__version__} works with torch {torch.__version__} from {erniem_fast.__path__[0]}")


if __name__ == "__main__":
    main()
