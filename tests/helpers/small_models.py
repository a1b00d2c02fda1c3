"""A model of one layer, for tests of what runs it."""

from erniem_fast import ErnieMConfig, ErnieMModel

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def small_model() -> ErnieMModel:
    """With fresh random weights, in eval mode."""
    return ErnieMModel(ErnieMConfig(**SIZES), add_pooling_layer=False).eval()
