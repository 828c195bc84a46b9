import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sssd_hf.training.averaging import WeightAverage


def steps(model, count, after):
    generator = torch.Generator().manual_seed(0)
    for step in range(1, count + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        after(step)


def test_equals_torchs_average_once_the_decay_is_reached():
    """From step 90 on (1 + t) / (10 + t) is above 0.9: torch's EMA with that decay."""
    model = nn.Linear(4, 3)
    average = WeightAverage(model, 0.9)
    other = {}

    def after(step):
        average.update(step)
        if step == 100:
            other["model"] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            for name, parameter in other["model"].module.named_parameters():
                parameter.data.copy_(average.values[name])
            other["model"].n_averaged.fill_(1)
        elif step > 100:
            other["model"].update_parameters(model)

    steps(model, 130, after)
    for name, parameter in other["model"].module.named_parameters():
        torch.testing.assert_close(average.values[name], parameter.data)


def test_closed_form_of_the_first_steps():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.999)
    history, expected = [], model.weight.item()

    def after(step):
        nonlocal expected
        average.update(step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * model.weight.item()
        history.append(expected)

    steps(model, 20, after)
    assert average.values["weight"].item() == pytest.approx(history[-1], rel=1e-5)


def test_bf16_weights_are_averaged_in_fp32():
    model = nn.Linear(8, 8).bfloat16()
    average = WeightAverage(model, 0.999)
    before = average.values["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    for step in range(10_000, 10_010):
        average.update(step)
    moved = (average.values["weight"] - before).mean()
    assert moved == pytest.approx(1 - 0.999**10, rel=0.02), "in bf16 it would not move"


def test_applied_and_given_back():
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.5)
    assert set(average.values) == {"weight"}, "what is not trained is not averaged"
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(1000)
    current = model.weight.detach().clone()

    def fail():
        with average.applied():
            torch.testing.assert_close(model.weight, average.values["weight"])
            assert not torch.equal(model.weight, current)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(model.weight, current)
    average.copy_to_model()
    torch.testing.assert_close(model.weight, average.values["weight"])
