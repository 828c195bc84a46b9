"""A GPU for a machine without one: tensors that say they lie on "cuda" and are computed on the CPU.

    python pretended_gpu.py LIBRARY NOTES.json SCRIPT --option value ...

runs scripts/SCRIPT.py on it and writes down where the host would have waited for the device. As on
a GPU, an operation on tensors of both devices is an error. LIBRARY is pretended_gpu.cpp, compiled;
it must be loaded before torch is imported. What a GPU computes, and how fast, this does not tell.
"""

import ctypes
import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path

LIBRARY, NOTES = sys.argv[1:3]
torch_folder = Path(importlib.util.find_spec("torch").origin).parent
for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(torch_folder / "lib" / name), mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
waits: list[list[str]] = []  # what, then the functions of this package, the outermost first

# take tensors of both devices
MIXING = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor}
MIXING |= {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# give a value, or as many as the values say
VALUES = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
VALUES |= {aten._unique2.default, aten.unique_dim.default, aten.masked_select.default}


def wait(what: str) -> None:
    calls = [f for f in traceback.extract_stack() if "sssd_hf" in f.filename]
    waits.append([what, *(f"{Path(f.filename).stem}.{f.name}" for f in calls)])


class OnGPU(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=GPU,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnGPU({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs):
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, OnGPU)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnGPU)]
    device = torch.device(kwargs.get("device") or (GPU if there else "cpu"))
    if not there and device.type != "cuda":
        return function(*args, **kwargs)
    look(function, args, kwargs, there, here, device)
    plain = [x.inner if isinstance(x, OnGPU) else x for x in flat]
    plain = [torch.device("cpu") if isinstance(x, torch.device) else x for x in plain]
    plain_args, plain_kwargs = tree_unflatten(plain, spec)
    result = function(*plain_args, **plain_kwargs)
    copied = function is aten._to_copy.default
    if device.type == "cpu":
        return result
    same = {id(x.inner): x for x in there}  # of operations in place

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return same[id(x)] if id(x) in same else OnGPU(x)

    result = tree_map(wrapped, result)
    if copied or not there:
        return result
    return return_and_correct_aliasing(function, args, kwargs, result)


def look(function, args, kwargs, there, here, device) -> None:
    """Raise where devices are mixed; note where the host waits."""
    if there and function not in MIXING and any(x.ndim for x in here):
        shapes = [[tuple(x.shape) for x in side] for side in (here, there)]
        raise RuntimeError(f"{function} takes tensors of the CPU {shapes[0]} and GPU {shapes[1]}")
    if function is aten._to_copy.default:
        if there and device.type == "cpu":
            wait("copied to the host")
        elif here and not kwargs.get("non_blocking"):
            wait("copied from the host")
    elif function is aten.copy_.default and here and not (len(args) > 2 and args[2]):
        wait("copied between devices")
    elif function in MIXING and not isinstance(args[0], OnGPU):
        raise RuntimeError(f"{function}: a tensor of the CPU, by indices of the GPU")
    elif function in MIXING and here:
        wait(f"{function} by indices of the host")
    elif function is aten.index.Tensor and any(
        i is not None and i.dtype == torch.bool for i in args[1]
    ):
        wait("indexed by a mask")
    elif function in VALUES:
        wait(str(function))


# ---------------------------------------------------------------------- what does not dispatch


def replace(name: str):
    def decorate(function):
        old = getattr(torch.Tensor, name)
        setattr(torch.Tensor, name, lambda self, *a, **k: function(old, self, *a, **k))

    return decorate


for name in ("untyped_storage", "storage", "data_ptr"):

    @replace(name)
    def of_inner(old, x, *args):
        return old(x.inner if isinstance(x, OnGPU) else x, *args)


@replace("tolist")
def _(old, x):
    if isinstance(x, OnGPU):
        wait("tolist")
        x = x.inner
    return old(x)


@replace("numpy")
def _(old, x, *args, **kwargs):
    if isinstance(x, OnGPU):
        raise TypeError("a tensor on the GPU has no numpy()")
    return old(x, *args, **kwargs)


@replace("__getitem__")
def _(old, x, index):
    return old(x, torch.tensor(index) if isinstance(index, list) else index)


@replace("new_tensor")
def _(old, x, data, **options):
    return torch.tensor(data, **{"dtype": x.dtype, "device": x.device, **options})


torch.Tensor.pin_memory = lambda self, *args: self
make_tensor = torch.tensor


def tensor(*args, device=None, **kwargs):
    device = torch.device(device) if device is not None else torch.empty(0).device
    if device.type == "cuda":
        return make_tensor(*args, device="cpu", **kwargs).to(device)
    return make_tensor(*args, device=device, **kwargs)


class Event:
    def record(self, *args):
        pass

    def synchronize(self):
        wait("an event")


torch.tensor = tensor
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.__future__.set_swap_module_params_on_conversion(True)  # for those who hold them
ANSWERS = {
    "is_available": True,
    "is_initialized": True,
    "is_bf16_supported": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": "a pretended GPU",
    "get_device_capability": (9, 0),
    "mem_get_info": (2**36, 2**36),
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
}
for name, answer in ANSWERS.items():
    setattr(torch.cuda, name, lambda *args, answer=answer, **options: answer)
for name in ("set_device", "synchronize", "set_rng_state", "manual_seed", "manual_seed_all"):
    setattr(torch.cuda, name, lambda *args: None)
torch.cuda._lazy_init = lambda: None
torch.cuda.Event = Event


def check() -> None:
    """That mixed devices raise, and that a look at a value is noted."""
    x = torch.ones(3, device="cuda")
    try:
        x + torch.ones(3)
    except RuntimeError:
        pass
    else:
        raise AssertionError("tensors of two devices were added up")
    for look_at in (lambda: x.sum().item(), lambda: x.cpu(), lambda: x[x > 0], lambda: x.tolist()):
        look_at()
        assert waits, "a wait was not noted"
        waits.clear()
    assert (x * 2).device == GPU
    assert not waits, f"noted a wait where there is none: {waits}"


if __name__ == "__main__":
    script, *argv = sys.argv[3:]
    main = importlib.import_module(f"sssd_hf.cli.{script}").main
    with Everywhere():
        check()
        code = main(argv)
    Path(NOTES).write_text(json.dumps(waits))
    sys.exit(code)
