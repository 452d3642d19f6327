"""Running sums and products along rays.

Without `packed_info` they run along the last axis of tensors of any shape; with `packed_info`
[R, 2] (start and count of each ray's chunk) along the chunks of a flattened tensor [N], whose
elements outside of all chunks give zero. Products have exact gradients where factors are zero.
Chunks that lead beyond the tensor raise UserError on the CPU, and are cut elsewhere.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from nerftrain.checks import check_packed_info
from nerftrain.ops.scan import scan_prod, scan_sum


def inclusive_sum(inputs: Tensor, packed_info: Tensor | None = None) -> Tensor:
    """Sum the elements up to each one and itself, as `torch.cumsum` does."""
    if packed_info is None:
        return inputs.cumsum(-1)
    return scan_sum(inputs, *_chunks(inputs, packed_info))


def exclusive_sum(inputs: Tensor, packed_info: Tensor | None = None) -> Tensor:
    """Sum the elements before each one; the first gets 0."""
    if packed_info is None:
        return functional.pad(inputs, (1, 0))[..., :-1].cumsum(-1)
    return scan_sum(inputs, *_chunks(inputs, packed_info), inclusive=False)


def inclusive_prod(inputs: Tensor, packed_info: Tensor | None = None) -> Tensor:
    """Multiply the elements up to each one and itself, as `torch.cumprod` does."""
    if packed_info is None:
        return inputs.cumprod(-1)
    return scan_prod(inputs, *_chunks(inputs, packed_info))


def exclusive_prod(inputs: Tensor, packed_info: Tensor | None = None) -> Tensor:
    """Multiply the elements before each one; the first gets 1."""
    if packed_info is None:
        return functional.pad(inputs, (1, 0), value=1)[..., :-1].cumprod(-1)
    return scan_prod(inputs, *_chunks(inputs, packed_info), inclusive=False)


def _chunks(inputs: Tensor, packed_info: Tensor) -> tuple[Tensor, Tensor]:
    check_packed_info(packed_info, inputs.numel())
    starts, counts = packed_info.unbind(1)
    return starts, counts
