"""Parameter groups and the schedule, against the published formulas written out by hand."""

import math

import pytest
import torch
from torch import nn

from sssd_hf import SSSDConfig, SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.training import optimization
from sssd_hf.training.optimization import (
    cosine_with_warmup,
    parameter_groups,
    set_learning_rate,
    step_in_backward,
)

FIELDS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "image_size": 32,
    "num_channels": 1,
    "distillation_num_prototypes": 8,
    "distillation_head_hidden_size": 16,
    "distillation_bottleneck_size": 8,
}


def by_name(model, groups):
    """name -> its group's (lr, weight_decay); each parameter is in one group at most."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found, f"{name} is in two groups"
            found[name] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("preset", ["stable", "sd_mae", "global", "mae"])
def test_every_trained_parameter_once_and_decay_on_matrices_alone(preset):
    model = SSSDForPreTraining(SSSDConfig.from_size("tiny", distillation=preset, **FIELDS))
    found = by_name(model, parameter_groups(model, 1e-3, 0.05))
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert "encoder.embeddings.position_embeddings" not in found  # frozen in pretraining
    assert all(lr == 1e-3 for lr, _ in found.values())
    # independent of names: what belongs to a linear layer or a convolution, and no bias
    decayed = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    decayed |= {name for name in found if name.endswith("prototypes")}
    assert {name for name, (_, decay) in found.items() if decay == 0.05} == decayed & set(found)
    rest = {name: decay for name, (_, decay) in found.items() if name not in decayed}
    assert set(rest.values()) == {0.0}
    assert {"encoder.embeddings.cls_token", "decoder.mask_token", "encoder.norm.weight"} <= set(
        rest
    )


def test_an_ema_teacher_is_not_trained():
    fields = {"distillation_head": "dino", "distillation_distance": "cross_entropy"}
    model = SSSDForPreTraining(SSSDConfig(**FIELDS, **fields))
    found = by_name(model, parameter_groups(model, 1e-3, 0.05))
    assert not [name for name in found if "teacher" in name]
    assert [name for name in found if "student_head" in name]


def test_layer_decay_is_beits():
    """BEiT's get_num_layer_for_vit: tokens, positions and patches 0; block i: i + 1; the rest is
    depth + 1; the rate is lr * decay ** (depth + 1 - layer)."""
    model = SSSDForImageClassification(SSSDConfig(**FIELDS, num_labels=2))
    found = by_name(model, parameter_groups(model, 2.0, 0.1, layer_decay=0.5))
    assert set(found) == {n for n, _ in model.named_parameters()}  # positions are trained here
    expected = {
        "encoder.embeddings.cls_token": (2.0 / 16, 0.0),
        "encoder.embeddings.position_embeddings": (2.0 / 16, 0.0),
        "encoder.embeddings.projection.weight": (2.0 / 16, 0.1),
        "encoder.embeddings.projection.bias": (2.0 / 16, 0.0),
        "encoder.layers.0.attention.qkv.weight": (2.0 / 8, 0.1),
        "encoder.layers.0.norm1.weight": (2.0 / 8, 0.0),
        "encoder.layers.1.mlp.fc1.weight": (2.0 / 4, 0.1),
        "encoder.layers.1.mlp.fc1.bias": (2.0 / 4, 0.0),
        "encoder.layers.2.attention.proj.weight": (2.0 / 2, 0.1),
        "encoder.layers.2.norm2.bias": (2.0 / 2, 0.0),
        "encoder.norm.weight": (2.0, 0.0),
        "classifier.weight": (2.0, 0.1),
        "classifier.bias": (2.0, 0.0),
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name
    for name, (rate, _) in found.items():
        layer = name.split(".")[2] if ".layers." in name else None
        if layer is not None:
            assert rate == pytest.approx(2.0 * 0.5 ** (4 - (int(layer) + 1))), name


def test_ten_layers_are_not_taken_for_one():
    model = SSSDForImageClassification(SSSDConfig(**{**FIELDS, "num_hidden_layers": 12}))
    found = by_name(model, parameter_groups(model, 1.0, 0.0, layer_decay=0.75))
    for layer in (1, 10, 11):
        rate = found[f"encoder.layers.{layer}.mlp.fc2.weight"][0]
        assert rate == pytest.approx(0.75 ** (12 - layer))


def rates(warmup, total, steps, groups=((1.0,),)):
    parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for (lr,) in groups]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    seen = []
    for step in range(steps):
        largest = set_learning_rate(optimizer, cosine_with_warmup(step, warmup, total))
        seen.append([group["lr"] for group in optimizer.param_groups])
        assert largest == max(seen[-1])
    return seen


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (4, 20), (1, 1), (5, 5), (7, 3)])
def test_schedule_is_the_closed_form(warmup, total):
    for step, (rate,) in enumerate(rates(warmup, total, total)):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            expected = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
        assert rate == pytest.approx(expected, abs=1e-12)
        assert rate > 0, "no step may be wasted"


def test_schedule_ends_at_zero_and_stays_there():
    late = rates(2, 10, 15)[10:]
    assert late == [[pytest.approx(0, abs=1e-12)]] * 5


def test_schedule_keeps_the_ratio_of_the_groups():
    for high, low in rates(3, 12, 12, groups=((2.0,), (0.5,))):
        assert low == pytest.approx(high / 4)


def test_stepping_in_the_backward_pass_changes_no_number(monkeypatch):
    monkeypatch.setattr(optimization, "LARGE", 1024)
    torch.manual_seed(0)
    model = SSSDForPreTraining(SSSDConfig(**FIELDS))
    expected = SSSDForPreTraining(model.config)
    expected.load_state_dict(model.state_dict())
    made = [
        torch.optim.AdamW(parameter_groups(each, 1e-2, 0.05), fused=True)
        for each in (model, expected)
    ]
    images = torch.randn(4, 1, 32, 32)
    noise = torch.rand(4, model.config.num_patches)
    large = [p for p in model.parameters() if p.requires_grad and p.numel() >= 1024]
    assert 0 < len(large) < len(list(model.parameters()))
    for _ in range(3):
        with step_in_backward(made[0]):
            model(images, noise=noise).loss.backward()
        assert not any(p.grad is not None for p in large)
        expected(images, noise=noise).loss.backward()
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, weight in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
    states = [optimizer.state_dict()["state"] for optimizer in made]
    assert states[0].keys() == states[1].keys()
    for index, other in states[1].items():
        assert all(torch.equal(states[0][index][key], other[key]) for key in other)
    model(images, noise=noise).loss.backward()  # outside it is an ordinary model again
    assert all(p.grad is not None for p in large)
