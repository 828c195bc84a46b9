"""Parameter groups and the learning-rate schedule."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

LARGE = 2**20  # numbers in a weight: for the gradient of less, a call of the optimiser is too much


def layer_index(name: str, num_layers: int) -> int:
    """0: embeddings; 1 ... num_layers: the encoder's layers; num_layers + 1: all that follows."""
    if name.startswith("encoder.embeddings."):
        return 0
    match = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(match[1]) + 1 if match else num_layers + 1


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups for an optimiser over the trained parameters.

    No weight decay on norms, biases, positions and tokens (as MAE and timm have it). With
    `layer_decay` < 1 the learning rate falls by that factor with each layer below the head (BEiT,
    arXiv 2106.08254).
    """
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(
            ("cls_token", "mask_token", "position_embeddings")
        )
        layer = layer_index(name, num_layers)
        group = groups.setdefault(
            (layer, plain),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (num_layers + 1 - layer),
                "weight_decay": 0.0 if plain else weight_decay,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def cosine_with_warmup(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step (0-based): a linear rise over `warmup_steps`, then
    half a cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Each group's peak times `factor`; returns the largest. A function of the step alone, so that
    a resumed run needs no state of it."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return max(group["lr"] for group in optimizer.param_groups)


@contextmanager
def step_in_backward(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the backward pass steps each large weight as soon as it has its gradient, and frees
    that, so that gradients, 4 of AdamW's 16 bytes a weight, never lie all beside each other.

    The same numbers as `optimizer.step()` after the backward pass, which is left with the small
    weights. Only for gradients that are whole by then: of one process and one part batch, neither
    clipped by their common norm nor scaled.
    """

    def step(_: torch.Tensor) -> None:
        optimizer.step()  # what has a gradient: this weight, and small ones since the last call
        optimizer.zero_grad(set_to_none=True)

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    handles = [w.register_post_accumulate_grad_hook(step) for w in weights if w.numel() >= LARGE]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
