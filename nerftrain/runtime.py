"""Where and how a run computes: device, threads, compiled ops, seeds."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from functools import cached_property
from typing import Literal

import torch

from nerftrain.bounds import MOST_THREADS, check_at_most
from nerftrain.errors import UserError
from nerftrain.ops import library, toolkit

_logger = logging.getLogger(__name__)

# glibc's mallopt parameters: memory up to this size is kept for reuse instead of going back to the
# system. Without them each step's buffers are new pages, each of which faults when it is touched
# for the first time.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def bfloat16(device_type: str, enabled: bool = True) -> torch.autocast:
    """Return what multiplies bfloat16 numbers within, in training.

    Without a cache: torch 2.10 gives weights that were rounded without gradients, where rays look
    for their samples, to the pass that wants them.
    """
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled, cache_enabled=False)


class Runtime:
    """The device, the CPU's threads and which ops serve."""

    def __init__(
        self,
        device: Literal["auto", "cpu", "cuda"],
        threads: int | None,
        ops: Literal["auto", "native", "reference"],
        cpu_isa: Literal["auto", "portable", "avx2", "avx512", "avx512_bf16", "amx"],
        precision: Literal["float32", "tf32", "bfloat16", "float16"],
        cuda_graph: bool,
    ) -> None:
        """Choose; `start` puts the choice into effect.

        Raises UserError for fewer than one thread, and far too many.
        """
        if threads is not None and threads < 1:
            raise UserError(
                f"threads={threads}: must be at least 1, or null for all that this process may use"
            )
        check_at_most(MOST_THREADS, threads=threads or 1)
        self.device, self.threads = device, threads
        self.ops: library.Mode = ops
        self.cpu_isa: library.CpuIsa = cpu_isa
        self.precision = precision
        self.cuda_graph = cuda_graph

    @cached_property
    def torch_device(self) -> torch.device:
        """Name the device to compute on; steps ask for it, and what there is stays the same.

        Raises UserError where CUDA is asked for and absent.
        """
        cuda = self.device != "cpu" and toolkit.has_gpu()
        if self.device == "cuda" and not cuda:
            raise UserError(
                f"runtime.device=cuda, but {toolkit.gpu_fault() or 'torch finds no CUDA device'}: "
                "see nerftrain doctor, or use runtime=cpu"
            )
        return torch.device("cuda" if cuda else "cpu")

    @property
    def has_fixed_rooms(self) -> bool:
        """Tell whether samples lie in buffers of fixed sizes: a GPU is not asked for numbers."""
        device = self.torch_device
        return device.type == "cuda" and library.native(torch.empty(0, device=device))

    def start(self, seed: int) -> None:
        """Set threads, ops and seeds for this process."""
        if self.device == "auto" and (fault := toolkit.gpu_fault()):
            _logger.warning("the CPU serves: %s", fault)
        torch.set_num_threads(self.threads or _usable_cores())
        library.set_mode(self.ops)
        if self.torch_device.type == "cpu" and self.cpu_isa != "auto":
            library.set_cpu_isa(self.cpu_isa)
        if self.torch_device.type == "cuda":
            exact = self.precision == "float32"
            torch.set_float32_matmul_precision("highest" if exact else "high")
            library.set_half_precision(self.precision == "float16")
        torch.manual_seed(seed)
        _keep_memory()

    def autocast(self) -> torch.autocast:
        """Return what a training step computes in: with precision=bfloat16 a GPU's products.

        Everything else stays in float32, and as bfloat16 has float32's range, no loss is scaled.
        """
        device = self.torch_device.type
        enabled = device == "cuda" and self.precision == "bfloat16"
        return bfloat16(device, enabled)

    def generator(self, seed: int) -> torch.Generator:
        """Make the generator that rays, jitter and backgrounds are drawn from."""
        return torch.Generator(self.torch_device).manual_seed(seed)


def _usable_cores() -> int:
    """Count the cores that this process may use.

    Its affinity limits them and, where there is one, its cgroup's quota.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        return cores


def _keep_memory() -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from libraries other than glibc
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
