"""Contract: what the padding-free model gives for a sequence is what the reference gives for it alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast import PackedBatch

PAD = 1
HEADS = {
    "ErnieMForSequenceClassification": {"num_labels": 3},
    "ErnieMForTokenClassification": {"num_labels": 5},
    "ErnieMForQuestionAnswering": {},
    "ErnieMForInformationExtraction": {},
    "ErnieMForMaskedLM": {},
}
drawn = settings(max_examples=15)


@st.composite
def masks(draw: st.DrawFn, max_batch: int = 5, max_len: int = 12) -> Tensor:
    """(batch, seq_len) masks: right, left, holes, full, all padding."""
    batch, seq_len = draw(st.integers(1, max_batch)), draw(st.integers(1, max_len))
    rows = []
    for _ in range(batch):
        length, kind = draw(st.integers(0, seq_len)), draw(st.sampled_from(["right", "left", "holes"]))
        row = [column < length for column in range(seq_len)]
        if kind == "left":
            row.reverse()
        if kind == "holes":
            row = draw(st.lists(st.booleans(), min_size=seq_len, max_size=seq_len))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.long)


def random_ids(mask: Tensor, vocab_size: int = 97) -> Tensor:
    """Real tokens anywhere in the vocabulary but [PAD]; padding holds anything at all."""
    ids = torch.randint(2, vocab_size, mask.shape)
    return torch.where((mask == 0) & (torch.rand(mask.shape) < 0.5), PAD, ids)


def alone(plain: Any, ids: Tensor, mask: Tensor, row: int, **labels: Tensor) -> Any:
    """The reference on one row's real tokens, at the positions that they have in the row."""
    real = mask[row].bool()
    position_ids = torch.arange(mask.shape[1])[real]
    tokens = ids[row][real]
    return plain(tokens[None], position_ids=position_ids[None], attention_mask=torch.ones(1, len(tokens)), **labels)


@drawn
@given(mask=masks())
def test_each_sequence_as_if_alone(make_pair: Any, mask: Tensor) -> None:
    plain, fast = make_pair()
    ids = random_ids(mask)
    output = fast(ids, attention_mask=mask, output_hidden_states=True)
    assert output.last_hidden_state.isfinite().all()
    assert output.pooler_output.isfinite().all()
    for layer in output.hidden_states:
        assert (layer[mask == 0] == 0).all()
    for row in range(len(ids)):
        if mask[row].any():
            expected = alone(plain, ids, mask, row)
            torch.testing.assert_close(
                output.last_hidden_state[row][mask[row].bool()], expected.last_hidden_state[0], rtol=0, atol=1e-10
            )
            torch.testing.assert_close(output.pooler_output[row], expected.pooler_output[0], rtol=0, atol=1e-10)


@drawn
@given(mask=masks(), data=st.data())
def test_the_rest_of_the_batch_changes_nothing(make_pair: Any, mask: Tensor, data: st.DataObject) -> None:
    _, fast = make_pair(dtype=torch.float32)
    ids = random_ids(mask)
    whole = fast(ids, attention_mask=mask).last_hidden_state
    order = torch.tensor(data.draw(st.permutations(range(len(ids)))))
    keep = order[: data.draw(st.integers(1, len(ids)))]
    extra = data.draw(st.integers(0, 4))
    padded_ids = torch.cat([ids[keep], torch.randint(0, 97, (len(keep), extra))], 1)
    padded_mask = torch.cat([mask[keep], torch.zeros(len(keep), extra, dtype=torch.long)], 1)
    part = fast(padded_ids, attention_mask=padded_mask).last_hidden_state
    torch.testing.assert_close(part[:, : ids.shape[1]], whole[keep], rtol=0, atol=1e-5)
    assert (part[:, ids.shape[1] :] == 0).all()


@drawn
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any))
def test_packed_and_padded_entries_agree(make_pair: Any, lengths: list[int]) -> None:
    _, fast = make_pair()
    sequences = [torch.randint(2, 97, (length,)) for length in lengths]
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    padded = fast(ids, output_attentions=False)
    batch = PackedBatch.from_sequences(sequences)
    from_batch = fast(batch)
    flattened = fast(
        torch.cat(sequences)[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        cu_seq_lens_q=batch.cu_seqlens,
        cu_seq_lens_k=batch.cu_seqlens.clone(),
        max_length_q=max(lengths),
        max_length_k=max(lengths),
    )
    without_positions = fast(torch.cat(sequences)[None], cu_seq_lens_q=batch.cu_seqlens.long())
    rows = padded.last_hidden_state[ids != PAD][None]
    for output in (from_batch, flattened, without_positions):
        torch.testing.assert_close(output.last_hidden_state, rows, rtol=0, atol=1e-12)
        torch.testing.assert_close(output.pooler_output, padded.pooler_output, rtol=0, atol=1e-12)


def labels_for(name: str, mask: Tensor) -> dict[str, Tensor]:
    batch, seq_len = mask.shape
    if name == "ErnieMForSequenceClassification":
        return {"labels": torch.randint(0, 3, (batch,))}
    if name in ("ErnieMForTokenClassification", "ErnieMForMaskedLM"):
        labels = torch.randint(0, 5, (batch, seq_len))
        return {"labels": torch.where(torch.rand(batch, seq_len) < 0.2, -100, labels)}
    if name == "ErnieMForQuestionAnswering":
        # Anywhere: real tokens, padding, outside the row.
        return {key: torch.randint(-3, seq_len + 3, (batch,)) for key in ("start_positions", "end_positions")}
    return {key: (torch.rand(batch, seq_len) < 0.3).double() for key in ("start_positions", "end_positions")}


def row_labels(name: str, labels: dict[str, Tensor], mask: Tensor, row: int) -> dict[str, Tensor]:
    """The labels of one row, for its real tokens alone."""
    real = mask[row].bool()
    if name == "ErnieMForSequenceClassification":
        return {key: value[row : row + 1] for key, value in labels.items()}
    if name != "ErnieMForQuestionAnswering":
        return {key: value[row][real][None] for key, value in labels.items()}
    found = {}
    for key, value in labels.items():
        place = int(value[row])
        inside = 0 <= place < mask.shape[1] and bool(real[place])
        found[key] = torch.tensor([int(real[:place].sum()) if inside else -1])
    return found


@drawn
@given(mask=masks(max_batch=4, max_len=8).filter(lambda mask: bool(mask.any(1).all())))
@pytest.mark.parametrize("name", HEADS)
def test_heads_and_their_losses_row_by_row(make_pair: Any, name: str, mask: Tensor) -> None:
    plain, fast = make_pair(name, **HEADS[name])
    ids, labels = random_ids(mask), labels_for(name, mask)
    output = fast(ids, attention_mask=mask, **labels)
    rows = [alone(plain, ids, mask, row, **row_labels(name, labels, mask, row)) for row in range(len(ids))]
    lowest = torch.finfo(torch.float64).min
    logits = [key for key in output if key.endswith("logits")]
    for key in logits:
        for row, expected in enumerate(rows):
            found = output[key][row]
            if name != "ErnieMForSequenceClassification":
                fill = lowest if key != "logits" else 0.0
                assert (found[mask[row] == 0] == fill).all()
                found = found[mask[row].bool()]
            torch.testing.assert_close(found, expected[key][0], rtol=0, atol=1e-10)
    if name in ("ErnieMForTokenClassification", "ErnieMForMaskedLM"):
        # A mean over tokens: each row weighs as many as it has.
        counts = [
            int((value["labels"] != -100).sum())
            for value in (row_labels(name, labels, mask, row) for row in range(len(ids)))
        ]
        expected = sum(count * row.loss for count, row in zip(counts, rows, strict=True)) / max(1, sum(counts))
    elif name == "ErnieMForQuestionAnswering":
        expected = torch.zeros(())
        for key in labels:
            logits_key = key.replace("positions", "logits")
            places = [int(row_labels(name, labels, mask, row)[key]) for row in range(len(ids))]
            losses = [
                -row[logits_key][0].log_softmax(-1)[place]
                for row, place in zip(rows, places, strict=True)
                if place >= 0
            ]
            expected = expected + (sum(losses) / len(losses) / 2 if losses else 0)
    else:
        expected = sum(row.loss for row in rows) / len(rows)
    torch.testing.assert_close(output.loss, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in fast.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["ErnieMForQuestionAnswering", "ErnieMForInformationExtraction"])
def test_padded_batch_has_the_gradient_of_its_rows(make_pair: Any, name: str) -> None:
    plain, fast = make_pair(name)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]])
    ids = random_ids(mask)
    labels = labels_for(name, mask)
    if name == "ErnieMForQuestionAnswering":
        labels = {"start_positions": torch.tensor([0, 2, 2]), "end_positions": torch.tensor([3, 5, 5])}
    fast(ids, attention_mask=mask, **labels).loss.backward()
    losses = [alone(plain, ids, mask, row, **row_labels(name, labels, mask, row)).loss for row in range(3)]
    (sum(losses) / 3).backward()
    expected = dict(plain.named_parameters())
    for key, parameter in fast.named_parameters():
        if expected[key].grad is not None:
            torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=0, atol=1e-10, msg=key)


def test_left_padded_gradients_row_by_row(make_pair: Any) -> None:
    plain, fast = make_pair()
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    ids = random_ids(mask)
    weight = torch.randn(32, dtype=torch.float64)
    output = fast(ids, attention_mask=mask)
    ((output.last_hidden_state * weight).tanh().sum() + (output.pooler_output**2).sum()).backward()
    for row in range(3):
        expected = alone(plain, ids, mask, row)
        ((expected.last_hidden_state * weight).tanh().sum() + (expected.pooler_output**2).sum()).backward()
    wanted = dict(plain.named_parameters())
    for key, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=0, atol=1e-10, msg=key)


@pytest.mark.parametrize("heads", [1, 4])
def test_masks_of_three_and_four_dimensions(make_pair: Any, heads: int) -> None:
    plain, fast = make_pair()
    ids = torch.randint(2, 97, (3, 7))
    mask = torch.rand(3, heads, 7, 7) < 0.6
    mask |= torch.eye(7, dtype=torch.bool)
    for given_mask in (mask, mask.long(), mask.float()) + ((mask[:, 0],) if heads == 1 else ()):
        expected = plain(ids, attention_mask=given_mask, output_attentions=True)
        found = fast(ids, attention_mask=given_mask, output_attentions=True)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.attentions[1], expected.attentions[1], rtol=0, atol=1e-10)
    assert (expected.attentions[0].masked_select(~mask.expand(3, 4, 7, 7)) == 0).all()


def test_square_mask_of_a_padded_batch(make_pair: Any) -> None:
    """The outer product of a 2D mask says what the 2D mask says."""
    _, fast = make_pair()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ids = random_ids(mask)
    expected = fast(ids, attention_mask=mask).last_hidden_state
    found = fast(ids, attention_mask=mask[:, :, None] * mask[:, None, :]).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_query_that_sees_nothing_does_not_see_padding(make_pair: Any) -> None:
    plain, fast = make_pair()
    ids = torch.randint(2, 97, (1, 5))
    mask = torch.ones(1, 5, 5, dtype=torch.bool)
    mask[0, 2] = False
    expected = plain(ids, attention_mask=mask)[0]
    torch.testing.assert_close(fast(ids, attention_mask=mask)[0], expected, rtol=0, atol=1e-10)
    wider = torch.nn.functional.pad(mask, (0, 3, 0, 3))
    found = fast(torch.nn.functional.pad(ids, (0, 3), value=7), attention_mask=wider)[0]
    torch.testing.assert_close(found[:, :5], expected, rtol=0, atol=1e-10)
    assert (found[:, 5:] == 0).all()


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@drawn
@given(mask=masks(max_batch=3, max_len=8).filter(lambda mask: bool(mask.any(1).all())))
def test_relative_positions(make_pair: Any, kind: str, mask: Tensor) -> None:
    plain, fast = make_pair(position_embedding_type=kind)
    ids = random_ids(mask)
    expected = plain(ids, attention_mask=mask).last_hidden_state
    found = fast(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new", "gelu_pytorch_tanh", "gelu_python", "tanh"])
def test_activations(make_pair: Any, activation: str) -> None:
    plain, fast = make_pair(hidden_act=activation)
    ids = torch.randint(2, 97, (3, 9))
    torch.testing.assert_close(fast(ids)[0], plain(ids)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", ["heads", "layers"])
def test_head_mask(make_pair: Any, shape: str) -> None:
    plain, fast = make_pair()
    head_mask = torch.rand(4) if shape == "heads" else torch.rand(2, 4)
    ids = torch.randint(2, 97, (3, 9))
    ids[0, 5:] = PAD
    expected, found = plain(ids, head_mask=head_mask), fast(ids, head_mask=head_mask)
    real = ids != PAD
    torch.testing.assert_close(found[0][real], expected[0][real], rtol=0, atol=1e-10)
    assert not torch.allclose(found[0], fast(ids)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForTokenClassification"])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch(
    make_pair: Any, dtype: torch.dtype, name: str
) -> None:
    exact, _ = make_pair(name, hidden_size=64, vocab_size=97)
    plain, fast = make_pair(name, dtype, hidden_size=64, vocab_size=97)
    plain.load_state_dict(exact.state_dict())
    fast.load_state_dict(plain.state_dict())
    exact.load_state_dict(plain.state_dict())
    ids = torch.randint(2, 97, (16, 60))
    lengths = torch.randint(1, 61, (16,))
    mask = (torch.arange(60) < lengths[:, None]).long()
    expected = exact(ids, attention_mask=mask)[0][mask.bool()]

    def error(model: Any) -> float:
        found = model(ids, attention_mask=mask)[0]
        assert found.dtype == dtype
        return (found[mask.bool()].double() - expected).pow(2).mean().sqrt().item()

    assert error(fast) <= 2 * error(plain)
    labels = torch.randint(0, 2, ids.shape)
    loss = fast(ids, attention_mask=mask, labels=labels).loss if name != "ErnieMModel" else fast(ids)[0].sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in fast.parameters() if p.grad is not None)


def test_float32_on_unit_scale_hidden_states(make_pair: Any) -> None:
    # Weights of a usual size: large ones amplify the rounding of any implementation.
    sizes = {"hidden_size": 64, "initializer_range": 0.05, "noise": 0.0}
    exact, _ = make_pair(**sizes)
    _, fast = make_pair(dtype=torch.float32, **sizes)
    exact.load_state_dict(fast.state_dict())
    ids = torch.randint(2, 97, (8, 60))
    expected = exact(ids)[0]
    assert 0.5 < expected.std() < 2
    torch.testing.assert_close(fast(ids)[0].double(), expected, rtol=0, atol=1e-5)


def test_all_padding_rows(make_pair: Any) -> None:
    _, fast = make_pair()
    ids = torch.full((3, 5), PAD)
    empty = fast(ids)
    assert (empty.last_hidden_state == 0).all()
    assert empty.pooler_output.isfinite().all()
    ids[1, :3] = torch.tensor([5, 6, 7])
    output = fast(ids, output_attentions=True, output_hidden_states=True)
    assert output.last_hidden_state.isfinite().all()
    assert all(attention.isfinite().all() for attention in output.attentions)
    output.last_hidden_state.sum().backward()
    assert all(p.grad.isfinite().all() for p in fast.parameters() if p.grad is not None)


def test_prefix_lens(make_pair: Any) -> None:
    """Rows before the prefix see the prefix only: by the fused and by the dense path."""
    plain, fast = make_pair()
    lengths, prefixes = [5, 9, 4], [2, 0, 4]
    sequences = [torch.randint(2, 97, (length,)) for length in lengths]
    batch = PackedBatch.from_sequences(sequences)
    batch = PackedBatch(**(vars(batch) | {"prefix_lens": torch.tensor(prefixes, dtype=torch.int32)}))
    fused = fast(batch).last_hidden_state[0].split(lengths)
    dense = fast(batch, output_attentions=True).last_hidden_state[0].split(lengths)
    for sequence, prefix, *found in zip(sequences, prefixes, fused, dense, strict=True):
        place = torch.arange(len(sequence))
        mask = (place[:, None] >= prefix) | (place < prefix)
        expected = plain(sequence[None], attention_mask=mask[None]).last_hidden_state[0]
        for one in found:
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-10)


def test_dropout_is_governed_by_manual_seed(make_pair: Any) -> None:
    _, fast = make_pair(dtype=torch.float32, act_dropout=0.2)
    fast.train()
    ids = torch.randint(2, 97, (4, 12))

    def step(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        fast.zero_grad()
        hidden = fast(ids)[0]
        hidden.square().sum().backward()
        return [hidden] + [p.grad.clone() for p in fast.parameters() if p.grad is not None]

    first, again, other = step(3), step(3), step(4)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(fast(ids)[0], fast(ids)[0])
    fast.eval()
    state = torch.get_rng_state()
    assert torch.equal(fast(ids)[0], fast(ids)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_has_the_statistics_of_dropout(make_pair: Any) -> None:
    """The mean over many masks of a linear function of the kept elements is the function without dropout."""
    from erniem_fast import ops

    x = torch.randn(64, 40, dtype=torch.float64)
    for p in (0.1, 0.5):
        total = torch.zeros_like(x)
        for _ in range(400):
            seed = ops.draw_seed(torch.device("cpu"))
            total += torch.where(ops.bias_activation_dropout(x, dropout=ops.Dropout(p, seed, 0)) == 0, 0.0, 1.0)
        kept = total.mean().item() / 400
        assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / (400 * x.numel())) ** 0.5 + 1e-5
