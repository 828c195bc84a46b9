"""Products that keep less for the backward pass, against the plain modules."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers.activations import GELUActivation

from sssd_hf import products_sssd
from sssd_hf.products_sssd import linear, norm_linear, norm_mlp, project, standardize

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()


def modules():
    torch.manual_seed(0)
    norm = nn.LayerNorm(8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mlp = nn.Sequential()
    for name, module in (
        ("fc1", nn.Linear(8, 32)),
        ("act", GELUActivation()),
        ("fc2", nn.Linear(32, 8)),
    ):
        mlp.add_module(name, module)
    return nn.ModuleDict({"norm": norm, "layer": nn.Linear(8, 24), "mlp": mlp})


CASES = {
    "linear": (lambda m, x: linear(x, m.layer), lambda m, x: m.layer(x)),
    "norm_linear": (lambda m, x: norm_linear(x, m.norm, m.layer), lambda m, x: m.layer(m.norm(x))),
    "norm_mlp": (lambda m, x: norm_mlp(x, m.norm, m.mlp), lambda m, x: m.mlp(m.norm(x))),
}


def results(function, module, autocast):
    """Output, and gradients of the input and of every weight."""
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = function(module, x)
    y.float().square().sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"y": y, "x": x.grad, **gradients}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "onednn", [False, pytest.param(True, marks=pytest.mark.skipif(not ONEDNN, reason="no oneDNN"))]
)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_modules(monkeypatch, name, onednn, autocast):
    monkeypatch.setattr(products_sssd, "onednn_is_faster", lambda: onednn)
    lean, plain = CASES[name]
    module = modules()
    expected = results(plain, copy.deepcopy(module), autocast)
    found = results(lean, module, autocast)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        torch.testing.assert_close(found[key], value)


@pytest.mark.skipif(not ONEDNN, reason="torch has no oneDNN here")
@pytest.mark.parametrize("name", CASES)
def test_inference_uses_the_faster_library_too(monkeypatch, name):
    monkeypatch.setattr(products_sssd, "onednn_is_faster", lambda: True)
    lean, plain = CASES[name]
    module, x = modules(), torch.randn(3, 5, 8)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        found = lean(module, x)
    assert any("_linear_pointwise" in event.key for event in profile.key_averages())
    with torch.no_grad():
        torch.testing.assert_close(found.clone(), plain(module, x))


@pytest.mark.parametrize("frozen", ["norm", "layer", "mlp"])
def test_frozen_weights_get_no_gradient(frozen):
    module = modules()
    module[frozen].requires_grad_(False)
    for lean, plain in CASES.values():
        expected = results(plain, copy.deepcopy(module), False)
        found = results(lean, copy.deepcopy(module), False)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[k], expected[k], atol=1e-5) for k in expected)


def test_hooks_and_modules_in_the_place_of_others_are_called():
    module, seen = modules(), []
    hook = module.mlp.register_forward_hook(lambda *_: seen.append("mlp"))
    norm_mlp(torch.randn(2, 8), module.norm, module.mlp)
    hook.remove()
    module.mlp.act.register_forward_hook(lambda *_: seen.append("act"))
    norm_mlp(torch.randn(2, 8), module.norm, module.mlp)
    replaced = type("LoRA", (nn.Linear,), {"forward": lambda self, x: seen.append("lora") or x})
    norm_linear(torch.randn(2, 8), module.norm, replaced(8, 24))
    assert seen == ["mlp", "act", "lora"]


def test_weights_that_lie_elsewhere_are_fetched():
    module, x = modules(), torch.randn(2, 3, 8)
    expected = norm_mlp(x, module.norm, module.mlp)
    offloaded = cpu_offload(copy.deepcopy(module), execution_device="cpu")
    assert offloaded.mlp.fc1.weight.is_meta
    torch.testing.assert_close(norm_mlp(x, offloaded.norm, offloaded.mlp), expected)


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_found_without_values(name):
    lean, plain = CASES[name]
    module, x = modules().to("meta"), torch.randn(3, 5, 8, device="meta")
    assert lean(module, x).shape == plain(module, x).shape


def kept_for_backward(function, x):
    """Numbers that the graph holds, weights and the input aside."""
    sizes = {}

    def note(tensor):
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = function(x)
    sizes.pop(x.untyped_storage().data_ptr(), None)
    return sum(sizes.values()), y


def test_what_lies_between_two_products_is_not_kept():
    module = modules()
    x = torch.randn(100, 8, requires_grad=True)
    lean, _keep = kept_for_backward(lambda x: norm_mlp(x, module.norm, module.mlp), x)
    plain, _keep = kept_for_backward(lambda x: module.mlp(module.norm(x)), x)
    assert plain >= 100 * (8 + 32 + 32)  # normalised, before and after the GELU
    assert lean <= 100 * (32 + 2)  # before the GELU, and the normalisation's mean and spread


def test_under_autocast_no_cast_weights_are_kept():
    module, x = modules(), torch.randn(4, 8, requires_grad=True)  # few rows: weights would show
    with torch.autocast("cpu", torch.bfloat16):
        lean, _keep = kept_for_backward(lambda x: norm_mlp(x, module.norm, module.mlp), x)
        plain, _keep = kept_for_backward(lambda x: module.mlp(module.norm(x)), x)
    weights = (module.mlp.fc1.weight.numel() + module.mlp.fc2.weight.numel()) // 2
    assert lean <= 4 * (32 + 2) < weights <= plain


def test_standardize_is_by_the_unbiased_variance():
    x = torch.randn(4, 7, 16, dtype=torch.float64)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(standardize(x, 1e-6), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "onednn", [False, pytest.param(True, marks=pytest.mark.skipif(not ONEDNN, reason="no oneDNN"))]
)
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_those_of_the_modules(monkeypatch, name, onednn):
    """A gradient penalty, Hessians: of weights and input."""
    monkeypatch.setattr(products_sssd, "onednn_is_faster", lambda: onednn)
    found = []
    for function in CASES[name]:
        module = modules()
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        weights = [x, *module.parameters()]
        loss = function(module, x).pow(3).sum()
        first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        found.append(torch.autograd.grad(penalty, weights, allow_unused=True))
    for own, expected in zip(*found, strict=True):
        assert (own is None) == (expected is None)
        if own is not None:
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_transforms_of_functions(name):
    lean, plain = CASES[name]
    module, x = modules(), torch.randn(4, 8)
    for transform in (torch.func.jacrev, torch.func.vmap, torch.func.hessian):
        found, expected = (transform(lambda x, f=f: f(module, x))(x) for f in (lean, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_are_projected_as_by_the_convolution():
    layer, patches = nn.Conv2d(3, 16, (4, 2), (4, 2)), torch.randn(2, 5, 24)
    expected = layer(patches.reshape(10, 3, 4, 2)).reshape(2, 5, 16)
    torch.testing.assert_close(project(patches, layer), expected)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)  # such as LoRA's
    torch.testing.assert_close(project(patches, layer), 2 * expected)
