from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

_MEMORY_BYTES = 4 << 30
"""Address space, most of it libraries and stacks of threads; a parser that asks for gigabytes fails."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: minutes of random input; run by `make test-long`")


@pytest.fixture(scope="session", autouse=True)
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
