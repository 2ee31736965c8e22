"""A device beside the CPU that any machine has: its tensors are the CPU's in disguise.

    with on_other_device():
        model = GPT(config).to(DEVICE)

What a GPU refuses is refused: operations on tensors of both devices, but for copies, for a CPU's
numbers and for indices from a CPU. The arithmetic is the CPU's, so that results can be compared;
autocast knows nothing of this device and leaves it at fp32.
`waits` counts what makes the processor wait for a GPU: reading a number, copying to the CPU.
"""

from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (_DummyBackendModule,
                                              _setup_privateuseone_for_python_backend)

aten = torch.ops.aten
waits = Counter()


class _Module(_DummyBackendModule):
    """torch asks a device that is there for these, whoever else uses this process."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state, device=None):
        """It has none: its random numbers are the CPU's."""


_setup_privateuseone_for_python_backend("other", backend_module=_Module())
DEVICE = torch.device("other", 0)

COPIES = {aten._to_copy.default, aten.copy_.default}
INDICES_FROM_A_CPU = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
                      aten._index_put_impl_.default}


class Disguised(torch.Tensor):
    """`held` is the CPU's tensor."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Disguised({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = {id(t.held): t for t in tensors if isinstance(t, Disguised)}
    strangers = [t for t in tensors if not isinstance(t, Disguised) and t.dim()]
    if there and strangers and operation not in COPIES | INDICES_FROM_A_CPU:
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    goal = kwargs.get("device")
    result_there = there if goal is None else torch.device(goal).type == "other"
    if operation is aten._local_scalar_dense.default:
        result_there = False
    if there and not result_there:
        waits[str(operation)] += 1
    if goal is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, Disguised) else t, (args, kwargs))
    result = operation(*args, **kwargs)
    if not result_there:
        return result
    # an operation in place gives back the tensor that it was given
    return tree_map(lambda t: there[id(t)] if id(t) in there else Disguised(t)
                    if isinstance(t, torch.Tensor) else t, result)


class _Factories(TorchDispatchMode):
    """Operations without a tensor among their arguments: torch.zeros(…, device=DEVICE)."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """torch.tensor(numbers, device=DEVICE) does not ask a TorchDispatchMode."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        goal = (kwargs or {}).get("device")
        if function is torch.Tensor.tolist and isinstance(args[0], Disguised):
            return args[0].cpu().tolist()
        if function is torch.tensor and goal is not None and torch.device(goal).type == "other":
            kwargs.pop("device")
            return function(*args, **kwargs).to(goal)
        return function(*args, **(kwargs or {}))


@contextmanager
def on_other_device():
    waits.clear()
    with (_Factories(), _FromNumbers(),
          patch("torch.inference_mode", torch.no_grad)):  # which such tensors don't know
        yield
