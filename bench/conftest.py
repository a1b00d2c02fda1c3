"""Options of the benchmarks, and the cases that they choose."""

import re

import pytest
import torch

from .registry import cases
from .shapes import Setting


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("erniem_fast benchmarks")
    group.addoption("--tiny", action="store_true", help="tiny shapes: a dry run")
    group.addoption("--only", default="", help="regular expression that operation/shape/provider must contain")
    group.addoption("--device", default="cpu")
    group.addoption("--dtype", default="float32")
    group.addoption("--threads", type=int, default=2)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    pattern = re.compile(option("--only"))
    chosen = [case for case in cases(option("--tiny"), option("--device")) if pattern.search(case.name)]
    metafunc.parametrize("case", chosen, ids=[case.name for case in chosen])


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> Setting:
    """Where and in what precision the cases run."""
    return Setting(request.config.getoption("--device"), getattr(torch, request.config.getoption("--dtype")))
