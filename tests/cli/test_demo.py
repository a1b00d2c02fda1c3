"""The demo on real text."""

import numpy as np
from helpers.command_line import SIZES, assert_one_line, run

from erniem_fast import ErnieMConfig
from erniem_fast.cli import demo, verify


def test_demo_with_a_checkpoint(save, tmp_path):
    folder, out = save(tmp_path / "tiny", max_position_embeddings=514), tmp_path / "v.npy"
    result = run("demo", "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    for part in ("96 documents in 23 languages", "34,704", "5,935", "82.9%", "real tokens/s", "largest difference"):
        assert part in result.stdout
    assert "RANDOM" not in result.stdout
    vectors = np.load(out)
    assert vectors.shape == (96, 32)
    assert np.isfinite(vectors).all()
    assert (np.abs(vectors).sum(1) > 0).all()


def test_demo_with_random_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ErnieMConfig", lambda: ErnieMConfig(**SIZES))
    monkeypatch.setattr(demo, "sample", lambda: verify.sample()[:20])
    out = tmp_path / "v.npy"
    for path in (out, tmp_path / "again.npy"):
        result = run("demo", "--out", path)
        assert result.exit_code == 0, result.output
        assert "THE WEIGHTS ARE RANDOM" in result.stdout
    np.testing.assert_array_equal(np.load(out), np.load(tmp_path / "again.npy"))


def test_demo_bad_output(tmp_path):
    assert_one_line(run("demo", "--out", tmp_path / "missing" / "v.npy"), "--out", "No such file")
