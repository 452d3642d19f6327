"""Steps on a GPU that the host does not wait for, recorded once and replayed as CUDA graphs.

A step of some hundred kernels takes the host longer to launch than the GPU to run. Where nothing in
it depends on what the device has found out, all its launches can be recorded and replayed as one.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from nerftrain.memory import has_run_out

_log = logging.getLogger(__name__)

AHEAD = 8  # steps by which the host is ahead of a GPU, at most
AGAIN = 1  # times that a step comes as it was before it is recorded: each record costs some steps
RECORDS = 4  # that are kept: samplers alternate between few kinds of steps

T = TypeVar("T")


class Counts(NamedTuple):
    """What a step was made of."""

    drawn: int  # rays
    whole: int  # rays that have found room for their samples
    samples: int  # with gradients
    evaluated: int  # densities without


class Pace:
    """Keeps the host a few steps ahead of a GPU, and brings what was counted back that much later.

    On a CPU nothing is late.
    """

    def __init__(self, device: torch.device) -> None:
        """Reserve memory that a GPU can copy to while the host goes on."""
        self._device = device
        self._slots: list[tuple[int, Tensor, torch.cuda.Event] | None] = []
        self._turn = 0
        if device.type == "cuda":
            self._slots = [None] * AHEAD
            self._pinned = torch.zeros(AHEAD, 3, dtype=torch.int64, pin_memory=True)

    def passed(self, drawn: int, counted: Tensor) -> Counts | None:
        """Take in what a step of so many rays counted (whole, samples, evaluated: [3] int64).

        Returns what an earlier step counted, None where none has arrived yet. Waits for that step.
        """
        if not self._slots:
            return Counts(drawn, *counted.tolist())
        slot = self._turn % AHEAD
        self._turn += 1
        arrived = self._slots[slot]
        counts = None
        if arrived is not None:
            arrived[2].synchronize()
            counts = Counts(arrived[0], *arrived[1].tolist())
        self._pinned[slot].copy_(counted, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._slots[slot] = (drawn, self._pinned[slot], event)
        return counts

    def settle(self) -> float:
        """Wait until the device has done all that it was given: the seconds that it took."""
        started = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


class Recorder(Generic[T]):
    """Takes steps: recorded ones by a replay, others by calling `take`.

    A step is known by a key that names all that the host decides about it. What `take` returns of a
    recorded step are the same tensors every time, with new numbers in them.
    """

    def __init__(
        self,
        take: Callable[..., T],
        generator: torch.Generator,
        sampler: Any,
        why_not: str | None,
    ) -> None:
        """Record calls of take(*key), which draws from a generator.

        `sampler.recorded` names the attributes of a sampler that a step leaves behind. `why_not`
        says why nothing is to be recorded.
        """
        self._take, self._generator, self._sampler = take, generator, sampler
        self.why_not = why_not
        self._records: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, T, dict[str, Any]]]
        self._records = OrderedDict()
        self._pool: Any = None
        self._last: Hashable = None
        self._times = 0  # that the last key has come in a row

    @property
    def num_records(self) -> int:
        """Count the steps that are kept."""
        return len(self._records)

    def step(self, *key: Any) -> T:
        """Take the step that the key names."""
        if key in self._records:
            self._records.move_to_end(key)
            graph, taken, left = self._records[key]
            graph.replay()
            vars(self._sampler).update(left)
            return taken
        self._times = self._times + 1 if key == self._last else 1
        self._last = key
        if self.why_not is None and self._times > AGAIN:
            try:
                return self._record(key)
            except RuntimeError as error:
                if has_run_out(error):
                    raise
                self.forget()
                self.why_not = str(error).strip().splitlines()[0]
                _log.warning(
                    "steps are launched kernel by kernel, no CUDA graph can be made of them: %s "
                    "(runtime.cuda_graph=false does not try)",
                    self.why_not,
                )
        return self._take(*key)

    def _record(self, key: tuple[Any, ...]) -> T:
        while len(self._records) >= RECORDS:
            self._records.popitem(last=False)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self._make_room()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            try:
                taken = self._take(*key)
            except BaseException:
                with suppress(RuntimeError):  # which says that something went wrong, not what
                    graph.capture_end()
                raise
            graph.capture_end()
        except BaseException:
            self._end_capture()
            raise
        left = {name: getattr(self._sampler, name) for name in self._sampler.recorded}
        self._records[key] = graph, taken, left
        graph.replay()
        return taken

    def _make_room(self) -> None:
        """Give back what the allocator keeps where memory is scarce: in a recording it cannot."""
        device = self._generator.device
        if device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(device)
        if free < torch.cuda.memory_reserved(device):  # which no step needs as much as
            torch.cuda.synchronize(device)
            gc.collect()
            torch.cuda.empty_cache()

    def _end_capture(self) -> None:
        """Undo what torch before 2.12 leaves of a capture that has failed.

        Its allocator goes on taking from the pool, and its generators refuse to be drawn from; a
        copy of their state, which a capture does not move, refuses nothing.
        """
        device = self._generator.device
        if device.type != "cuda":
            return
        index = torch.cuda.current_device() if device.index is None else device.index
        with suppress(RuntimeError):  # where it has been ended
            torch._C._cuda_endAllocateToPool(index, self._pool)
        for generator in (self._generator, torch.cuda.default_generators[index]):
            generator.graphsafe_set_state(generator.clone_state())

    def forget(self) -> None:
        """Drop all records and their memory."""
        self._records.clear()
        self._pool, self._last, self._times = None, None, 0


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Let a GPU's work go by a stream of its own: the default one cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    outside = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        with suppress(RuntimeError):  # a GPU that has failed would have the last word
            outside.wait_stream(stream)
