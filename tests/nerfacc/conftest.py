"""Devices that the tests of nerfacc's names share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nerftrain.ops import library

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device present."""
    return torch.device(request.param)


@pytest.fixture(autouse=True, scope="module")
def _compiled_ops() -> Iterator[None]:
    """A failed build fails these tests: references must not stand in for the ops."""
    library.set_mode("native")
    yield
    library.set_mode("auto")
