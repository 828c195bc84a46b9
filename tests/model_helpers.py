"""Tiny models for the tests of the model files."""

import torch

from sssd_hf import SSSDConfig

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
SMALL_HEAD = {
    "distillation_num_prototypes": 12,
    "distillation_head_hidden_size": 20,
    "distillation_bottleneck_size": 6,
}


def tiny_config(**fields):
    return SSSDConfig(**{**TINY, **SMALL_HEAD, **fields})


def randomize(model, std=0.3):
    """Every floating-point weight and buffer drawn anew, so that none is zero or one by default."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)
    return model


def images(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()
