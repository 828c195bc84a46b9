"""Linear layers that keep less for the backward pass, and use the faster of two CPU libraries. The
values are those of the plain layers, to the rounding of a sum's order.

Between two matrix products of a block lies a normalisation or a GELU, cheap to compute and large
to keep. Autograd keeps its output for the gradient of the product behind it; here it is computed
again: 10 numbers a token and channel of a block are kept instead of 16. Under autocast so are the
weights' low-precision copies, which autograd keeps from the forward pass on.

This file travels with a checkpoint as remote code: it imports torch and transformers only.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation


@lru_cache
def onednn_is_faster() -> bool:
    """Whether torch's fp32 products are better taken from oneDNN. They come from MKL, which leaves
    AMD's AVX-512 unused: 103 instead of 200 GFLOP/s, forward and backward, on one core of an EPYC
    (Zen 5; torch 2.13), where products are three quarters or more of a step. By the processor's
    maker, not by a trial: a resumed run must choose the same."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # inductor's operator, no public name
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.enabled:
        return False
    information = Path("/proc/cpuinfo")
    return information.exists() and "AuthenticAMD" in information.read_text()


def _by_onednn(x: Tensor) -> bool:
    fp32_on_cpu = x.dtype == torch.float32 and x.device.type == "cpu"
    return fp32_on_cpu and not torch.is_autocast_enabled("cpu") and onednn_is_faster()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (rows, in) @ weight (out, in) transposed, + bias."""
    if _by_onednn(x) and not torch.is_grad_enabled():  # in a second derivative: autograd has none
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _in(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in tensors]


def _gradients(ctx, grad: Tensor, x: Tensor, weight: Tensor, first: int) -> tuple:
    """Of a product's x, weight, bias and data type, those that are asked for; the last three are
    the function's inputs number `first` and the next. `grad` (rows, out), `x` (rows, in).

    Under autocast the weight is cast again, as in the forward pass, instead of kept."""
    product = _product(grad.mT, x.mT) if ctx.needs_input_grad[first] else None
    return (
        _product(grad, weight.to(x.dtype).mT) if any(ctx.needs_input_grad[:first]) else None,
        None if product is None else product.to(weight.dtype),
        grad.sum(0).to(weight.dtype) if ctx.needs_input_grad[first + 1] else None,
        None,
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dtype):
        ctx.save_for_backward(x, weight)
        return _product(x, *_in(dtype, weight, bias))

    @staticmethod
    def backward(ctx, grad):
        return _gradients(ctx, grad, *ctx.saved_tensors, first=1)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, shift, eps, weight, bias, dtype):
        normal, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], gain, shift, eps)
        ctx.save_for_backward(x, gain, shift, weight, mean, rstd)
        ctx.eps, ctx.dtype = eps, dtype
        return _product(*_in(dtype, normal, weight, bias))

    @staticmethod
    def backward(ctx, grad):
        x, gain, shift, weight, mean, rstd = ctx.saved_tensors
        normal = torch.native_layer_norm(x, x.shape[-1:], gain, shift, ctx.eps)[0]
        inner, *others = _gradients(ctx, grad, normal.to(ctx.dtype), weight, first=4)
        if inner is None:
            return None, None, None, None, *others
        outer = torch.ops.aten.native_layer_norm_backward(
            inner.to(normal.dtype), x, x.shape[-1:], mean, rstd, gain, shift,
            ctx.needs_input_grad[:3],
        )  # fmt: skip
        return *outer, None, *others


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dtype):
        ctx.save_for_backward(x, weight)
        return _product(F.gelu(x), *_in(dtype, weight, bias))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        inner, *others = _gradients(ctx, grad, F.gelu(x), weight, first=1)
        return None if inner is None else torch.ops.aten.gelu_backward(inner, x), *others


def _is_changed(module: nn.Module) -> bool:
    """Whether somebody has put something in its place (LoRA), before or behind it (hooks), or in
    its forward's place (accelerate's, that fetch weights from elsewhere)."""
    known = type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Sequential, GELUActivation)
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
    hooks = *hooks, module._backward_pre_hooks
    return not known or "forward" in vars(module) or any(hooks)


def _is_plain(x: Tensor, *modules: nn.Module) -> bool:
    """Whether products of these modules may be computed here: something is gained, no compiler or
    exporter is at work (it decides by itself what to keep) nor one of torch.func's transforms,
    there are values at all, and modules and weights (no DTensors) are plain."""
    transformed = torch._C._are_functorch_transforms_active()  # as torch.autograd.Function asks
    at_work = torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or transformed
    return (
        not at_work
        and (torch.is_grad_enabled() or _by_onednn(x))
        and not any(_is_changed(m) for m in modules)
        and all(type(p) is nn.Parameter for m in modules for p in m.parameters())
    )


def _apply(function, x: Tensor, layer: nn.Linear, *options) -> Tensor:
    """`function` on the rows of `x`, in autocast's data type where that is on."""
    kind = x.device.type
    on = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if on else layer.weight.dtype
    if on and function is not _NormLinear:
        x = x.to(dtype)
    rows = function.apply(x.flatten(0, -2), *options, layer.weight, layer.bias, dtype)
    return rows.unflatten(0, x.shape[:-1])


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """`layer(x)`; there is something to gain by oneDNN, and under autocast on a CPU, where plain
    layers keep their cast weights."""
    if _is_plain(x, layer):
        autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if autocast or _by_onednn(x):
            return _apply(_Linear, x, layer)
    return layer(x)


def norm_linear(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """`layer(norm(x))`"""
    if x.dtype != norm.weight.dtype or not _is_plain(x, norm, layer):
        return layer(norm(x))
    return _apply(_NormLinear, x, layer, norm.weight, norm.bias, norm.eps)


def norm_mlp(x: Tensor, norm: nn.LayerNorm, mlp: nn.Sequential) -> Tensor:
    """`mlp(norm(x))`, of an mlp of fc1, act and fc2"""
    if _is_changed(mlp) or not _is_plain(x, mlp.act, mlp.fc2):
        return mlp(norm(x))
    if not torch.is_grad_enabled() and _is_plain(x, norm, mlp.fc1):
        # nothing is kept, so that oneDNN can take the GELU on its way: 5 % of a small model's time
        weights = mlp.fc1.weight, mlp.fc1.bias
        gelu = torch.ops.mkldnn._linear_pointwise(
            norm(x).flatten(0, -2), *weights, "gelu", [], "none"
        )
        return _product(gelu, mlp.fc2.weight, mlp.fc2.bias).unflatten(0, x.shape[:-1])
    return _apply(_GeluLinear, norm_linear(x, norm, mlp.fc1), mlp.fc2)


def project(patches: Tensor, layer: nn.Conv2d) -> Tensor:
    """`layer` of patches (batch, number, channels * height * width), each by itself; as a product
    it takes a fifth of the time."""
    if _is_changed(layer):
        images = patches.reshape(-1, layer.in_channels, *layer.kernel_size)
        return layer(images).reshape(*patches.shape[:2], -1)
    return F.linear(patches, layer.weight.flatten(1), layer.bias)


def standardize(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last dimension, the variance over n - 1. One pass
    instead of five: with the squared error's, they were 10 % of a step of tiny on a CPU."""
    n = x.shape[-1]
    share = (n - 1) / n  # of torch's normalisation, whose variance is over n
    return share**0.5 * F.layer_norm(x, (n,), eps=eps * share)
