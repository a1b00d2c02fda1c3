"""Peers compute the same as the reference."""

import torch
from helpers.varlen import plain_attention

from bench.engine.shapes import BOTH, TINY, Batch, Setting, batch_of
from bench.models import peers
from bench.models.inputs import ModelInputs, packed_forward
from erniem_fast import modeling, reference


def test_the_peers_compute_what_the_reference_does() -> None:
    config = TINY.config()
    model = reference.ErnieMModel(config, add_pooling_layer=False).eval()
    batch = Batch.random((5, 2, 7), config.vocab_size, "cpu")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    expected = batch.packed.from_grid(model(**inputs).last_hidden_state)
    unpadded = peers.UnpaddedModel(model, plain_attention)(batch.packed)
    assert torch.allclose(unpadded, expected, atol=1e-5)
    peers.use_sdpa(model, unmasked=False)
    assert torch.allclose(batch.packed.from_grid(model(**inputs).last_hidden_state), expected, atol=1e-5)
    drawn = [model.train()(**inputs).last_hidden_state for _ in range(2)]
    assert not torch.equal(*drawn), "it has dropout"


def test_a_gradient_that_overflows_changes_nobody_else_s_weights() -> None:
    """AdamW at a learning rate of 0 makes NaN of it."""
    shape = batch_of(5, 2, name="two", sizes=TINY)
    inputs = ModelInputs(shape, Setting(passes=BOTH, tiny=True), optimizer=True)
    before = {name: weight.clone() for name, weight in inputs.weights.items()}
    model = inputs.model(modeling.ErnieMModel)
    inputs.prepare(model, lambda batch: packed_forward(model, batch) * 1e30, padded=False).run()
    assert any(weight.isnan().any() for weight in model.parameters())
    assert all(torch.equal(inputs.weights[name], weight) for name, weight in before.items())
    other = inputs.model(reference.ErnieMModel)
    assert not any(weight.isnan().any() for weight in other.parameters())
