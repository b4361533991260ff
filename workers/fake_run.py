"""A run without memory and without numbers: tensors have shapes only, and what would be allocated is recorded.

::

    model, example ── FakeTensorMode ──► shapes
                          └─ `Recorder` ──► events: what was allocated, what was freed, which kernels took scratch

Composite operators are taken apart, as they are when they compute. Weights are no events: they are there already.
Operators are followed through torch's dispatcher, so what code of other libraries allocates is not seen, and what
asks for the value of a tensor fails: then the run must be made for real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

#: Kernels that take memory besides their results, by the beginning of their names: found by comparing what each
#: operator of the tests' architectures takes with the size of its results. Blocked layouts and unfolded images of
#: convolutions, gates of recurrent nets, blocks of attention for each thread, contiguous copies of what is not.
SCRATCH_KERNELS: Final = (
    "aten::convolution", "aten::mkldnn_rnn_layer", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::upsample_", "aten::native_layer_norm", "aten::native_group_norm", "aten::_native_batch_norm_legit",
    "aten::reflection_pad", "aten::replication_pad", "aten::_euclidean_dist", "aten::cumsum",
    "aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention",
)  # fmt: skip

#: What ``torch.tensor(3.0)`` comes to.
_MADE_OF_NUMBERS: Final = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)


class Allocated(NamedTuple):
    """A block was allocated."""

    block: int
    size_bytes: int


class Freed(NamedTuple):
    """A block was freed."""

    block: int


class Shape(NamedTuple):
    """What is known of a tensor that has no memory."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Computed(NamedTuple):
    """A kernel is about to run that takes scratch memory; its tensors are `Shape`.

    Attributes:
        key: equal for calls that take the same.
    """

    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Event: TypeAlias = Allocated | Freed | Computed


class FakeRun(NamedTuple):
    """What a run would do.

    Attributes:
        events: in their order.
        flops: floating-point operations of matrix products and convolutions, a multiply-add being two.
        touched_bytes: the weights that are used, once, and what is allocated, twice: it is written and read.
    """

    events: list[Event]
    flops: int
    touched_bytes: int


def run_fake(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    inputs_bytes: Sequence[int] = (),
    grad: bool = False,
) -> FakeRun:
    """Call something without computing.

    Args:
        function: what is called.
        args: what with, by position.
        kwargs: ... and by name.
        inputs_bytes: sizes of those inputs that are copied into the slot.
        grad: with gradients.

    Raises:
        Exception: what the function raises, or torch where it needs the value of a tensor.
    """
    mode = fake_mode()
    recorder = Recorder(mode.from_tensor)
    for size_bytes in inputs_bytes:
        recorder.allocate(size_bytes)
    with mode, recorder, torch.enable_grad() if grad else torch.no_grad():
        given = tree_map_only(torch.Tensor, recorder.take, (tuple(args), dict(kwargs)))
        result = function(*given[0], **given[1])
        lay_out(result)
    return FakeRun(recorder.events, recorder.flops, recorder.touched_bytes)


def fake_mode() -> FakeTensorMode:
    """Return a mode in which tensors have shapes only."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def lay_out(result: Any) -> None:
    """Do to a result what is done before it travels; one that yields its items is read to its end."""
    if hasattr(result, "__next__"):
        for _ in result:
            pass
    copies = [one.contiguous() for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
    del copies


class Recorder(TorchDispatchMode):
    """Records what operators allocate and compute.

    Args:
        stand_in: returns what stands for a tensor that has memory; default: the tensor itself.
    """

    def __init__(self, stand_in: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> None:
        super().__init__()
        self._stand_in = stand_in
        self.events: list[Event] = []
        self.flops = 0
        self._allocated_bytes = 0
        self._blocks = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: dict[int, torch.Tensor] = {}  # weights and inputs by storage, which is held by that

    @property
    def touched_bytes(self) -> int:
        """See `FakeRun`."""
        given_bytes = sum(one.untyped_storage().nbytes() for one in self._given.values())
        return given_bytes + 2 * self._allocated_bytes

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what stands for a tensor that an operator is given."""
        taken = tensor if isinstance(tensor, FakeTensor) else self._stand_in(tensor)
        key = taken.untyped_storage()._cdata
        if key not in self._live:
            self._given.setdefault(key, taken)
        return taken

    def allocate(self, size_bytes: int) -> int:
        """Note an allocation; return the number of the block."""
        self._blocks += 1
        self._allocated_bytes += size_bytes
        self.events.append(Allocated(self._blocks, size_bytes))
        return self._blocks

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and record it; see `TorchDispatchMode`."""
        named = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **named)
        with self:
            parts = func.decompose(*args, **named)
        if parts is not NotImplemented:
            return parts
        if func not in _MADE_OF_NUMBERS:  # torch remembers the values of those, for code that asks for them
            args, named = tree_map_only(torch.Tensor, self.take, (args, named))
        self._note_freed()
        if func.name().startswith(SCRATCH_KERNELS):
            self.events.append(_computed(func, args, named))
        result = func(*args, **named)
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self._note_allocated(one)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += int(count(*args, **named, out_val=result))
        return result

    def _note_allocated(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if size_bytes and key not in self._live and key not in self._given:
            self._live[key] = StorageWeakRef(storage), self.allocate(size_bytes)

    def _note_freed(self) -> None:
        for key in [key for key, (storage, _) in self._live.items() if storage.expired()]:
            self.events.append(Freed(self._live.pop(key)[1]))


def _computed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Computed:
    shapes = tree_map_only(torch.Tensor, _shape_of, (args, kwargs))
    return Computed(f"{function.name()} {shapes!r}", function, *shapes)


def _shape_of(tensor: torch.Tensor) -> Shape:
    return Shape(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
