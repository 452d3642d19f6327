"""The terms of the loss: what torch's own functions say, of the rays that count."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nerftrain.losses import ColorLoss, Kind


@pytest.mark.parametrize("kind", ["huber", "l2"])
@pytest.mark.parametrize("some", [False, True])
def test_colors_are_compared_as_torch_does(kind: Kind, some: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (3 * torch.rand(200, 3, generator=generator) for _ in range(2))
    whole = torch.rand(200, generator=generator) < 0.5 if some else None
    rows = slice(None) if whole is None else whole
    if kind == "huber":
        expected = functional.huber_loss(prediction[rows], target[rows], delta=0.3)
    else:
        expected = 0.5 * functional.mse_loss(prediction[rows], target[rows])
    torch.testing.assert_close(ColorLoss(kind, 0.3)(prediction, target, whole), expected)


def test_the_two_are_one_up_to_an_error_of_delta() -> None:
    target = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    prediction = (target + 0.2).requires_grad_()
    pair = ColorLoss("huber", 0.3)(prediction, target), ColorLoss("l2")(prediction, target)
    assert torch.equal(*pair)
    assert torch.equal(*(torch.autograd.grad(loss, prediction)[0] for loss in pair))
