"""Learning-rate schedules: a factor from the step (warm-up) and from the run's progress (decay).

Progress is the share of the run that is done. It follows whichever of steps and seconds will end
the run, so a schedule is complete either way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from nerftrain.errors import UserError


class Schedule(ABC):
    """A linear warm-up over the first steps, times a decay over the run."""

    def __init__(self, warmup_steps: int, warmup_factor: float) -> None:
        """Warm up from warmup_factor to 1 over warmup_steps.

        Raises UserError for impossible ones.
        """
        if warmup_steps < 0:
            raise UserError(f"warmup_steps={warmup_steps}: must be at least 0")
        if not 0 < warmup_factor <= 1:
            raise UserError(f"warmup_factor={warmup_factor}: must be in (0, 1]")
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor

    def factor(self, step: int, progress: float) -> float:
        """Return what to multiply the learning rate by.

        Args:
            step: how many steps are done.
            progress: the share of the run that is done, 0 to 1.
        """
        if step >= self.warmup_steps:
            return self.decay(progress)
        warmup = self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        return warmup * self.decay(progress)

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Return the factor of the decay alone."""


class Constant(Schedule):
    """No decay."""

    def decay(self, progress: float) -> float:
        """Return one."""
        return 1.0


class MultiStep(Schedule):
    """A factor at each milestone."""

    def __init__(
        self, milestones: list[float], gamma: float, warmup_steps: int, warmup_factor: float
    ) -> None:
        """Multiply by gamma at each milestone, given as shares of the run.

        Raises UserError for impossible ones.
        """
        super().__init__(warmup_steps, warmup_factor)
        if any(not 0 < m < 1 for m in milestones) or not 0 < gamma <= 1:
            raise UserError(
                f"milestones={milestones}, gamma={gamma}: "
                "need shares between 0 and 1, and 0 < gamma <= 1"
            )
        self.milestones, self.gamma = milestones, gamma

    def decay(self, progress: float) -> float:
        """Return gamma to the number of milestones passed."""
        return self.gamma ** sum(progress >= m for m in self.milestones)


class Exponential(Schedule):
    """Constant up to a share of the run, then an exponential decay to its end."""

    def __init__(self, start: float, final: float, warmup_steps: int, warmup_factor: float) -> None:
        """Decay from 1 at `start`, a share of the run, to `final` at the end.

        Raises UserError for impossible ones.
        """
        super().__init__(warmup_steps, warmup_factor)
        if not 0 <= start < 1 or not 0 < final <= 1:
            raise UserError(f"start={start}, final={final}: need 0 <= start < 1 and 0 < final <= 1")
        self.start, self.final = start, final

    def decay(self, progress: float) -> float:
        """Return final to the share of the decay that is done."""
        return self.final ** (max(progress - self.start, 0.0) / (1 - self.start))


class Cosine(Schedule):
    """Half a cosine down to the final factor."""

    def __init__(self, final: float, warmup_steps: int, warmup_factor: float) -> None:
        """Go from 1 to `final`.

        Raises UserError for impossible ones.
        """
        super().__init__(warmup_steps, warmup_factor)
        if not 0 <= final <= 1:
            raise UserError(f"final={final}: must be in [0, 1]")
        self.final = final

    def decay(self, progress: float) -> float:
        """Return the cosine's value."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
