"""Losses of pairs: equal to the sums that define them; two processes are one with the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.processes import PATIENCE

from erniem_fast.training.contrastive import LOSSES, hardest_negative, in_batch_softmax


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    return torch.einsum("ikd,jld->ikjl", unit, unit)


@pytest.mark.parametrize("width", [2, 3])
def test_softmax_by_hand(width: int) -> None:
    vectors = torch.randn(5, width, 7, dtype=torch.float64, requires_grad=True)
    scores = cosines(vectors) / 0.1
    there, back = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for one in range(5):
        candidates = [scores[one, 0, other, side] for other in range(5) for side in range(1, width)]
        there[one] = torch.logsumexp(torch.stack(candidates), 0) - scores[one, 0, one, 1]
        candidates = [scores[one, 1, other, 0] for other in range(5)]
        back[one] = torch.logsumexp(torch.stack(candidates), 0) - scores[one, 1, one, 0]
    expected = (there + back) / 2
    found = in_batch_softmax(vectors, 0.1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(expected.sum(), vectors)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), vectors)[0], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [2, 3])
def test_hardest_negative_by_hand(width: int) -> None:
    vectors = torch.randn(5, width, 7, dtype=torch.float64)
    scores = (cosines(vectors) / 0.1).tolist()
    losses = []
    for one in range(5):
        there = [
            scores[one][0][other][side] for other in range(5) for side in range(1, width) if (other, side) != (one, 1)
        ]
        back = [scores[one][1][other][0] for other in range(5) if other != one]
        right = scores[one][0][one][1]
        terms = [-torch.tensor(right).sigmoid().log()] * 2
        terms += [-torch.tensor(-max(wrong), dtype=torch.float64).sigmoid().log() for wrong in (there, back)]
        losses.append(float(sum(terms)) / 4)
    found = hardest_negative(vectors, 0.1).double()
    torch.testing.assert_close(found, torch.tensor(losses, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_lone_pair_has_finite_gradients(loss: object) -> None:
    vectors = torch.randn(1, 2, 7, requires_grad=True)
    found = loss(vectors, 0.05)  # type: ignore[operator]
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(vectors.grad).all()  # type: ignore[arg-type]


PROGRAM = """
import sys
import torch
import torch.distributed as dist
from erniem_fast.training import end_process_group
from erniem_fast.training.contrastive import LOSSES
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name, loss in LOSSES.items():
    vectors = torch.load(f"{folder}/vectors.pt")[slice(0, 3) if rank == 0 else slice(3, 8)].requires_grad_()
    losses = loss(vectors, 0.1)
    losses.sum().backward()
    torch.save((losses.detach(), vectors.grad), f"{folder}/{name}{rank}.pt")
    with torch.no_grad():  # an evaluation waits for nobody
        if rank == 0:
            loss(vectors, 0.1)
end_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_unlike_batches_are_one(tmp_path: Path) -> None:
    vectors = torch.randn(8, 3, 7)
    torch.save(vectors, tmp_path / "vectors.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [run.wait(PATIENCE) for run in runs] == [0, 0]
    for name, loss in LOSSES.items():
        parts = [torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)]
        joined = vectors.clone().requires_grad_()
        losses = loss(joined, 0.1)
        losses.sum().backward()
        torch.testing.assert_close(torch.cat([losses for losses, _ in parts]), losses.detach())
        torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), joined.grad)
