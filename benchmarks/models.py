"""The models that are compared, and one training step of each as its users run it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from sssd_hf import SSSDConfig, SSSDForPreTraining
from sssd_hf.modeling_sssd import sincos_positions
from sssd_hf.training.optimization import step_in_backward


def own_model(config: SSSDConfig, device: str, precision: str) -> nn.Module:
    model = SSSDForPreTraining(config).to(device).train()
    if device == "cpu" and precision == "bf16":
        model.set_attn_implementation("eager")  # as cli.runs.fit does
    return model


def stock_model(config: SSSDConfig | None, device: str) -> nn.Module:
    """`ViTMAEForPreTraining` of the same architecture, or (None) at its defaults, with positions:
    built from a config it has none."""
    if config is not None:
        return SSSDForPreTraining(config).to_vit_mae().to(device).train()
    model = ViTMAEForPreTraining(ViTMAEConfig())
    grid = (model.config.image_size // model.config.patch_size,) * 2
    tables = model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed
    with torch.no_grad():
        for table in tables:
            table.copy_(sincos_positions(grid, table.shape[-1]))
    return model.to(device).train()


class PublishedBlock(nn.Module):
    """A pre-norm block as the paper's code computes it: attention in plain operations."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class PublishedMAE(nn.Module):
    """MAE's training step re-created from the formulas of its paper (arXiv 2111.06377): all patches
    are embedded, a quarter of the tokens is gathered, the loss is over all patches times a mask."""

    def __init__(self, config: SSSDConfig):
        super().__init__()
        self.config, side = config, config.patch_size
        width, narrow, eps = config.hidden_size, config.decoder_hidden_size, config.layer_norm_eps
        self.embed = nn.Conv2d(config.num_channels, width, side, side)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.hidden = nn.Parameter(torch.zeros(1, 1, narrow))
        for name, size in (("positions", width), ("decoder_positions", narrow)):
            self.register_buffer(name, sincos_positions(config.grid_size, size))
        heads, decoder_heads = config.num_attention_heads, config.decoder_num_attention_heads
        self.encoder = nn.Sequential(
            *(PublishedBlock(width, heads, eps) for _ in range(config.num_hidden_layers)),
            nn.LayerNorm(width, eps),
        )
        self.to_decoder = nn.Linear(width, narrow)
        self.decoder = nn.Sequential(
            *(
                PublishedBlock(narrow, decoder_heads, eps)
                for _ in range(config.decoder_num_hidden_layers)
            ),
            nn.LayerNorm(narrow, eps),
            nn.Linear(narrow, side**2 * config.num_channels),
        )

    def forward(self, images):
        x = self.embed(images).flatten(2).mT + self.positions[:, 1:]
        batch, patches, width = x.shape
        visible = int(patches * (1 - self.config.mask_ratio))
        shuffle = torch.rand(batch, patches, device=x.device).argsort(1)
        restore = shuffle.argsort(1)
        x = x.gather(1, shuffle[:, :visible, None].expand(-1, -1, width))
        cls = (self.cls + self.positions[:, :1]).expand(batch, -1, -1)
        x = self.to_decoder(self.encoder(torch.cat([cls, x], 1)))
        full = torch.cat([x[:, 1:], self.hidden.to(x).expand(batch, patches - visible, -1)], 1)
        full = full.gather(1, restore[..., None].expand(-1, -1, full.shape[-1]))
        predicted = self.decoder(torch.cat([x[:, :1], full], 1) + self.decoder_positions)[:, 1:]
        side = self.config.patch_size
        target = F.unfold(images, side, stride=side).mT
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        loss = ((predicted - (target - mean) / (variance + 1e-6) ** 0.5) ** 2).mean(-1)
        mask = (restore >= visible).float()
        return (loss * mask).sum() / mask.sum()


def training_step(
    model: nn.Module,
    batch: int,
    device: str,
    precision: str,
    compiled: bool,
    fused: bool,
    own: bool = False,
) -> Callable[[], Any]:
    """Forward, backward and AdamW on fixed images; without `fused` as torch builds the optimiser by
    default (one parameter after the other on a CPU, in groups on a GPU); `own`: where our scripts
    take its step."""
    config = model.config
    images = torch.randn(batch, config.num_channels, config.image_size, config.image_size)
    images = images.to(device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True if fused else None)
    if compiled:
        model.compile()

    def step():
        mixed = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
        with mixed:
            output = model(images)
        loss = output if isinstance(output, torch.Tensor) else output.loss
        with step_in_backward(optimizer) if own and device == "cpu" else nullcontext():
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def operations(config: SSSDConfig, batch: int) -> float:
    """Of the matrix products of one step; the backward pass counts twice."""
    patches = config.num_patches
    visible = int(patches * (1 - config.mask_ratio))
    pixels = config.patch_size**2 * config.num_channels

    def blocks(depth: int, width: int, hidden: int, tokens: int) -> float:
        weights = 4 * width**2 + 2 * width * hidden
        return depth * tokens * (2 * weights + 4 * tokens * width)

    wide, narrow = config.hidden_size, config.decoder_hidden_size
    total = blocks(config.num_hidden_layers, wide, config.intermediate_size, visible + 1)
    total += blocks(
        config.decoder_num_hidden_layers, narrow, config.decoder_intermediate_size, patches + 1
    )
    total += 2 * visible * pixels * wide + 2 * (visible + 1) * wide * narrow
    total += 2 * (patches + 1) * narrow * pixels
    return 3.0 * batch * total
