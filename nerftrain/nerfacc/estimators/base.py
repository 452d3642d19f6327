"""What every transmittance estimator offers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AbstractEstimator(nn.Module):
    """Something that knows where along rays to sample, and learns it while a field is trained."""

    _dummy: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Moves with the module, is in no checkpoint: an estimator may have no other tensor.
        self.register_buffer("_dummy", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the estimator lies, and makes its samples."""
        return self._dummy.device

    def sampling(self, *args: Any, **kwargs: Any) -> Any:
        """Find samples along rays."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it samples")

    def update_every_n_steps(self, *args: Any, **kwargs: Any) -> Any:
        """Learn from a step of training."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it learns")
