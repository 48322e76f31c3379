"""The graphs oracle: autograd whose steps on a GPU are recorded once per shape of a mini-batch and then replayed.

A small net on a GPU waits for the CPU that launches its kernels one by one; a CUDA graph launches all kernels of a
forward and backward pass at once. A recording has fixed addresses, so weights, features and labels are copied into
memory of its own before each replay, and the gradient is written where autograd writes it.

Which steps are replayed depends on the client's own mini-batches alone, not on what a worker met before: those of a
length that comes ``OFTEN`` times or more in the client's work of a round. The rest, such as a short last batch, and
all other questions than ``grad`` take plain autograd. So placement does not change the result.

What Python does in a forward pass is done once, when it is recorded. A model that draws random numbers, writes to its
buffers or waits for the GPU is refused; one that goes another way at each call for other reasons must not be used here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Vec
from .autograd import Autograd
from .layers import DoesNotFit

OFTEN = 2       # times that a length must come in a client's work of a round
KEPT = 64       # recordings; of more shapes the one that was not used for longest goes
WARM_UP = 3     # passes before a recording, in which libraries make their choices; see PyTorch's CUDA semantics

Run = Callable[[], None]
Record = Callable[[Run], Run]   # from a function, what repeats its work on the GPU


@dataclass(frozen=True, eq=False)
class Recording:
    """A step on memory of its own: ``features`` and ``labels`` go in, ``loss`` [1] comes out."""

    features: Tensor
    labels: Tensor
    loss: Tensor
    replay: Run


class Graphs(Autograd):
    """One client at a time; ``record`` is replaced in tests on machines without a GPU.

    Raises:
        DoesNotFit: if the model cannot be recorded, or its recording would not do what the model does.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], store: Any,
                 prepare: Callable[[Tensor], Tensor], precision: str = "float32", record: Record | None = None) -> None:
        super().__init__(model, loss, store, prepare, precision)
        self.record = record or Recorder(self.gradient.device)
        self.weights = torch.zeros_like(self.gradient)
        self.recordings: OrderedDict[Any, Recording] = OrderedDict()
        self.often: frozenset[int] = frozenset()
        self._try()

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        return f"{super().describe()[:-1]}, steps replayed as CUDA graphs)"

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client; without its ``draws`` nothing is replayed."""
        super().enter(clients, draws)
        lengths = Counter(len(index) for index in draws[0]) if draws else {}
        self.often = frozenset(n for n, times in lengths.items() if times >= OFTEN)

    def _step(self, x: Vec) -> Tensor:
        features, labels = self.batch
        if len(labels) not in self.often:
            return super()._step(x)
        self.weights.copy_(x)
        recording = self._recording(features, labels)
        recording.features.copy_(features)
        recording.labels.copy_(labels)
        recording.replay()
        return recording.loss

    def _recording(self, features: Tensor, labels: Tensor) -> Recording:
        shape = features.shape, features.stride(), features.dtype, labels.shape, labels.dtype
        found = self.recordings.get(shape)
        if found is None:
            inputs, targets, loss = features.clone(), labels.clone(), torch.zeros_like(self.loss)

            def run() -> None:
                # Nothing that a recording allocates is needed after its replay, so that all can share memory.
                loss.copy_(self._backward(inputs, targets))

            self._bind(self.weights)
            found = self.recordings[shape] = Recording(inputs, targets, loss, self.record(run))
            if len(self.recordings) > KEPT:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(shape)
        return found

    def _try(self) -> None:
        """Run and record a step on one sample; refuse a model whose recording would repeat a moment's state."""
        draw = torch.tensor([0])
        self.enter([0], [[draw] * OFTEN])
        self.at([draw])
        random = self._random()
        held = [(module, name, module._buffers[name]) for module, name, _ in self.buffers]
        versions = [buffer._version for _, _, buffer in held if buffer is not None]
        super()._step(self.weights)
        if any(not torch.equal(one, two) for one, two in zip(random, self._random(), strict=True)):
            raise DoesNotFit("it draws random numbers, which a recording would not draw anew")
        same = all(module._buffers[name] is buffer for module, name, buffer in held)
        if not same or versions != [buffer._version for _, _, buffer in held if buffer is not None]:
            raise DoesNotFit("it writes to its buffers, which are every client's own")
        # They never change: a recording may rely on their addresses, which ``enter`` would renew.
        self.buffers = []
        try:
            self.grad(self.weights)
        except RuntimeError as e:
            raise DoesNotFit(f"CUDA cannot record it ({str(e).splitlines()[0]})") from e
        self.recordings.clear()

    def _random(self) -> list[Tensor]:
        device = self.gradient.device
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


class Recorder:
    """Records what runs on a GPU, as PyTorch's "CUDA semantics, CUDA Graphs" says; recordings share their memory."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Run a function ``WARM_UP`` times, record it, and return what replays it."""
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UP):
                    run()
            here.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads (NCCL's watchdog, say) may go on calling CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                run()
        return graph.replay
