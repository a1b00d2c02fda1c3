"""Peers compute the same as the reference."""

import torch
from torch import Tensor

from bench.engine.shapes import TINY, Batch
from bench.models import peers
from erniem_fast import reference


def plain_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    spans = cu_seqlens.diff().tolist()
    parts = zip(*(operand.split(spans) for operand in (query, key, value)), strict=True)
    heads = [[operand.transpose(0, 1) for operand in part] for part in parts]
    return torch.cat([torch.nn.functional.scaled_dot_product_attention(*part).transpose(0, 1) for part in heads])


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
