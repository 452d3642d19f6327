"""Optimisers by the field's recipes."""

from __future__ import annotations

import torch

from nerftrain.errors import UserError


def adam(
    lr: float, eps: float, weight_decay: float, betas: list[float], *, model: torch.nn.Module
) -> torch.optim.Optimizer:
    """Make Adam with L2 weight decay on matrices that every sample uses, not on tables of which it uses a few rows.

    Instant-NGP's recipe (arXiv:2201.05989, section 4): a tiny eps lets rarely seen entries learn as fast as others.
    Raises UserError for rates that are not positive.
    """
    if lr <= 0 or eps < 0 or weight_decay < 0:
        raise UserError(f"lr={lr}, eps={eps}, weight_decay={weight_decay}: need lr > 0 and the others >= 0")
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"betas={betas}: need two numbers in [0, 1)")
    tables = [p for name, p in model.named_parameters() if name.endswith("table")]
    others = [p for name, p in model.named_parameters() if not name.endswith("table")]
    groups = [{"params": others, "weight_decay": weight_decay}]
    groups += [{"params": tables, "weight_decay": 0.0}] if tables else []
    return torch.optim.Adam(groups, lr=lr, eps=eps, betas=(betas[0], betas[1]), fused=True)
