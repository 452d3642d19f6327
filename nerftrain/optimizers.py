"""Optimisers by the field's recipes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.adam import AdamRates, adam_step, adam_step_placed
from nerftrain.refinement import Refinement

# Adam moves a weight by about its rate in a step, and weights are below one: what lies beyond is a
# slip of the exponent.
MOST_RATE = 10.0
MOST_DECAY = 10.0  # of weights of one: far more than any gradient
LEAST_EPS = 1e-30  # 0, as which float32 takes less, moves what never had a gradient by 0 / 0


class Adam(torch.optim.Optimizer):
    """Adam whose parameter groups may skip entries that no sample has seen (`skip`).

    Of groups that say `clear` a step on a CPU may leave zeros of the gradients, which the next ones
    are added to: to clear them apart would take half as long as the step.
    """

    def __init__(self, params: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        """Take parameter groups; defaults are lr, betas, eps, weight_decay, skip and clear."""
        defaults = {"clear": False, **defaults}
        super().__init__(params, defaults)
        self._rates: dict[int, Tensor] = {}  # of groups whose parameters lie on a GPU, []

    def place_rates(self) -> None:
        """Put the learning rates where steps on a GPU read them, recorded ones too."""
        for number, group in enumerate(self.param_groups):
            first = group["params"][0]
            if library.on_cpu(first):
                continue
            if number not in self._rates:
                self._rates[number] = torch.zeros((), device=first.device)
            self._rates[number].fill_(group["lr"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        self._count_placed_steps()
        for number, group in enumerate(self.param_groups):
            beta1, beta2 = group["betas"]
            rates = AdamRates(
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                skip=group["skip"],
            )
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter)
                moments = state["mean"], state["variance"]
                if library.on_cpu(parameter):
                    state["step"] = int(state["step"]) + 1
                    clear = group.get("clear", False)  # older checkpoints do not say
                    adam_step(parameter, parameter.grad, *moments, rates, state["step"], clear)
                    continue
                if number not in self._rates:
                    self.place_rates()
                placed = self._rates[number], state["step"]
                adam_step_placed(parameter, parameter.grad, *moments, rates, placed)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:  # all or, where memory runs out, nothing
            moments = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state.update(step=0, mean=moments[0], variance=moments[1])
        return state

    def _count_placed_steps(self) -> None:
        """Advance the counters that lie where recorded steps read them, all by one launch."""
        counters: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or library.on_cpu(parameter):
                    continue
                state = self._state_of(parameter)
                steps = state["step"]
                if not isinstance(steps, Tensor) or steps.device != parameter.device:
                    # At first, or from a checkpoint.
                    state["step"] = steps = torch.full((), float(steps), device=parameter.device)
                counters.append(steps)
        if counters:
            torch._foreach_add_(counters, 1)  # pyright: ignore[reportPrivateImportUsage]


def adam(
    lr: float,
    eps: float,
    weight_decay: float,
    betas: list[float],
    skip_unseen: bool,
    warp_lr: float = 1.0,
    *,
    model: torch.nn.Module,
    sampler: torch.nn.Module | None = None,
    refinement: Refinement | None = None,
) -> torch.optim.Optimizer:
    """Make Adam with L2 weight decay on matrices that every sample uses, not on hash tables.

    Instant-NGP's recipe (arXiv:2201.05989, section 4): a tiny eps lets rarely seen entries learn
    as fast as others. With skip_unseen, table entries that no sample of a step has seen stay as
    they are. What moves places before a hash grid is looked up (the parameters of `warp`) learns at
    warp_lr times lr: deformation networks take a tenth or less of a table's rate (D-NeRF,
    arXiv:2011.13961, 5e-4). Raises UserError for rates that make no sense.
    """
    if lr <= 0 or weight_decay < 0:
        raise UserError(f"lr={lr}, weight_decay={weight_decay}: need lr > 0, weight_decay >= 0")
    if eps < LEAST_EPS:
        raise UserError(f"eps={eps}: must be at least {LEAST_EPS:g}")
    if warp_lr <= 0:
        raise UserError(f"warp_lr={warp_lr}: must be more than 0")
    bounded = {"lr": (lr, MOST_RATE), "weight_decay": (weight_decay, MOST_DECAY), "eps": (eps, 1.0)}
    for name, (value, most) in {**bounded, "warp_lr": (warp_lr, MOST_RATE / lr)}.items():
        if value > most:
            raise UserError(f"{name}={value}: must be at most {most:g}")
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"betas={betas}: need two numbers in [0, 1)")
    named = [*model.named_parameters(), *(sampler.named_parameters() if sampler else ())]
    parts: dict[str, list[Any]] = {"table": [], "warp": [], "other": []}
    for name, parameter in named:
        # Apart only where its rate differs: an optimiser's state is kept by its groups.
        kind = "warp" if warp_lr != 1 and name.startswith("warp.") else "other"
        parts["table" if _is_table(name) else kind].append(parameter)
    tables, warps, others = parts.values()
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": weight_decay, "skip": False}]
    if warps:
        groups.append({**groups[0], "params": warps, "lr": warp_lr * lr})
    if tables:
        groups.append({"params": tables, "weight_decay": 0.0, "skip": skip_unseen, "clear": True})
    if refinement is not None:
        groups += [{**group, "weight_decay": 0.0, "skip": False} for group in refinement.groups()]
    return Adam(groups, {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps})


def _is_table(name: str) -> bool:
    return name.removesuffix(".params").endswith("table")  # tiny-cuda-nn's has that suffix
