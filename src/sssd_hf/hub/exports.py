"""Checkpoints as models that load without this package: ViT, DINOv2, ViTMAE, timm.

Each `export_*` writes one model into a folder; the matching `check_*` loads what was written with
the foreign class and returns the greatest difference of its outputs on random images.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    PretrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from ..configuration_sssd import as_pair
from ..conversion_sssd import CARRIED_FIELDS, config_to_stock, to_mae, to_stock, to_three_channels
from ..modeling_sssd import GREY, SSSDForImageClassification, SSSDForPreTraining

logger = logging.getLogger("sssd_hf")
StateDict = dict[str, torch.Tensor]

# hidden_act of transformers -> act_layer of timm
_TIMM_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

TIMM_EPS = 1e-6  # of each norm of timm's VisionTransformer; none of its plain arguments says other

# ---------------------------------------------------------------------- from a checkpoint


def load_pretrained(name_or_path: str) -> SSSDForPreTraining:
    """A pretrained encoder and decoder in fp32, for evaluation.

    Raises:
        ValueError: the checkpoint has no decoder.
    """
    model, info = SSSDForPreTraining.from_pretrained(
        name_or_path, output_loading_info=True, dtype=torch.float32
    )
    lacking = [key for key in info["missing_keys"] if not key.startswith("distillation.")]
    if lacking:
        raise ValueError(
            f"--model_name_or_path {name_or_path}: {len(lacking)} weights, such as "
            f"{min(lacking)}, are missing: a fine-tuned classifier has no decoder. Name the "
            "checkpoint of the pretraining, or export the classifier by --to vit."
        )
    return model.eval()


def with_three_channels(model: SSSDForImageClassification) -> SSSDForImageClassification:
    """The classifier for RGB images; a one-channel one gets three, grey by `GREY`. Its processor
    has one mean and spread for all channels, and `GREY` sums to 1, so these need no folding."""
    if model.config.num_channels == 3:
        return model
    config = type(model.config)(**{**model.config.to_dict(), "num_channels": 3})
    result = SSSDForImageClassification(config)
    result.load_state_dict(to_three_channels(model.state_dict(), GREY))
    return result.eval()


def with_folded_temperature(model: SSSDForImageClassification) -> SSSDForImageClassification:
    """A copy whose logits are divided by the calibration's temperature, so that their softmax is
    the calibrated probability; its config says so, and its calibration has temperature 1.

    Raises:
        ValueError: the model has no calibration.
    """
    calibration = model.config.calibration
    if not calibration:
        raise ValueError(
            "--fold_temperature: the model's config has no calibration. Fit one (fine-tuning does, "
            "where there is a validation split), or leave the option out."
        )
    temperature = calibration["temperature"]
    result = SSSDForImageClassification(type(model.config)(**model.config.to_dict()))
    result.load_state_dict(model.state_dict())
    with torch.no_grad():
        result.classifier.weight.div_(temperature)
        result.classifier.bias.div_(temperature)
    result.config.calibration = {**calibration, "temperature": 1.0}
    result.config.folded_temperature = temperature
    return result.eval()


# ---------------------------------------------------------------------- writing


def _save(config: PretrainedConfig, weights: StateDict, folder: Path, architecture: str) -> None:
    config.architectures = [architecture]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    weights = {key: tensor.detach().contiguous() for key, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _marks(config: PretrainedConfig) -> dict[str, Any]:
    """Fields that no stock class reads, but that travel in its config."""
    found = {name: getattr(config, name, None) for name in CARRIED_FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def export_vit(model: SSSDForImageClassification, folder: Path) -> None:
    """A three-channel classifier as a `ViTForImageClassification`, under the weight names of
    transformers up to 5.8, which later releases read as well.

    Raises:
        ValueError: `pooling="mean"`: the stock ViT reads the CLS token, and normalises it last, so
            that no mean of normalised tokens can pass.
    """
    if model.config.pooling != "cls":
        raise ValueError(
            f"--to vit: the model has pooling={model.config.pooling!r}, and the stock ViT's head "
            "reads the CLS token alone. Export it by --to dinov2 (stock too, its head can read the "
            "mean), timm or onnx, or fine-tune with --pooling cls."
        )
    fields = config_to_stock(model.config.to_dict(), "vit")
    config = ViTConfig(**fields, **_marks(model.config))
    _save(config, to_stock(model.state_dict(), "old"), folder, "ViTForImageClassification")


def export_dinov2(model: SSSDForImageClassification, folder: Path) -> None:
    """A three-channel classifier as a `Dinov2ForImageClassification`, whose head reads the CLS
    token beside the mean of the patch tokens: what the model does not pool gets weights of zero,
    and the scales of the layers' outputs are 1.

    Raises:
        ValueError: the image or patch is not square, or the MLP's width no multiple of the model's.
    """
    config = model.config
    # as if the CLS token were read: the head is made below
    fields = config_to_stock({**config.to_dict(), "pooling": "cls"}, "vit")
    grid, width = config.grid_size, config.hidden_size
    if grid[0] != grid[1] or len(set(as_pair(config.patch_size))) > 1:
        raise ValueError(
            f"--to dinov2: image_size={config.image_size} with patch_size={config.patch_size}: the "
            "stock class holds square images and patches alone. Export by --to timm or onnx, or, "
            "with pooling='cls', --to vit."
        )
    ratio, rest = divmod(fields.pop("intermediate_size"), width)
    if rest:
        raise ValueError(
            f"--to dinov2: intermediate_size={config.intermediate_size} is no multiple of "
            f"hidden_size={width}, and the stock class knows multiples alone. Export by --to timm "
            "or onnx."
        )
    weights: StateDict = {}
    for key, tensor in to_stock(model.state_dict(), "old").items():
        for theirs, ours in (
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("intermediate.dense", "mlp.fc1"),
        ):
            key = key.replace(theirs, ours)
        if ".attention.output" not in key:
            key = key.replace("output.dense", "mlp.fc2")
        weights[key.replace("vit.", "dinov2.", 1)] = tensor
    for layer in range(config.num_hidden_layers):
        for i in (1, 2):
            name = f"dinov2.encoder.layer.{layer}.layer_scale{i}.lambda1"
            weights[name] = torch.ones(width)
    head = weights["classifier.weight"]
    both = [head, torch.zeros_like(head)]
    weights["classifier.weight"] = torch.cat(both if config.pooling == "cls" else both[::-1], dim=1)
    target = Dinov2Config(**fields, mlp_ratio=ratio, use_mask_token=False, **_marks(config))
    _save(target, weights, folder, "Dinov2ForImageClassification")


def export_vit_mae(model: SSSDForPreTraining, folder: Path) -> None:
    """Encoder and decoder as a `ViTMAEForPreTraining`, under the weight names of transformers up
    to 5.8; the distillation head is left behind.

    Raises:
        ValueError: the image or patch is not square.
    """
    fields = config_to_stock(model.config.to_dict(), "vit_mae")
    target = ViTMAEConfig(**fields, **_marks(model.config))
    _save(target, to_stock(model.state_dict(), "old"), folder, "ViTMAEForPreTraining")


def timm_fields(model: SSSDForImageClassification) -> dict[str, Any]:
    """Arguments of timm's `VisionTransformer` for a classifier's weights.

    Raises:
        ValueError: an activation that timm lacks.
    """
    config = model.config
    if config.hidden_act not in _TIMM_ACTIVATIONS:
        raise ValueError(
            f"--to timm: hidden_act={config.hidden_act!r} is unknown to timm; known are "
            f"{', '.join(_TIMM_ACTIVATIONS)}. Export by --to onnx."
        )
    return {
        "img_size": list(as_pair(config.image_size)),
        "patch_size": list(as_pair(config.patch_size)),
        "in_chans": config.num_channels,
        "num_classes": config.num_labels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm takes int(width * ratio): half a unit keeps the rounding from losing one
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "act_layer": _TIMM_ACTIVATIONS[config.hidden_act],
        # each token is normalised, then the mean is taken: the norm is not behind the pooling
        "global_pool": "token" if config.pooling == "cls" else "avg",
        "fc_norm": False,
        "proj_drop_rate": config.hidden_dropout_prob,
        "attn_drop_rate": config.attention_probs_dropout_prob,
        "drop_path_rate": config.drop_path_rate,
    }


def export_timm(model: SSSDForImageClassification, folder: Path, processor: dict[str, Any]) -> None:
    """A three-channel classifier as timm's `VisionTransformer`: `timm.create_model("local-dir:" +
    folder, pretrained=True)` builds and fills it, with what timm's transforms need to know.

    The epsilon of the norms is no plain value among timm's arguments: one that is not `TIMM_EPS`
    must be set on the model's norms after that, see `set_norm_eps`; it is also in
    `sssd_hf.layer_norm_eps` of config.json.
    """
    config, fields = model.config, timm_fields(model)
    size = as_pair(config.image_size)
    description = {
        # any registered ViT: all that tells ViTs apart is among the arguments
        "architecture": "vit_tiny_patch16_224",
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": fields["global_pool"],
        "model_args": fields,
        "label_names": [config.id2label[i] for i in range(config.num_labels)],
        "pretrained_cfg": {
            "input_size": [config.num_channels, *size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": processor["image_mean"],
            "std": processor["image_std"],
            "num_classes": config.num_labels,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "sssd_hf": {"layer_norm_eps": config.layer_norm_eps, **_marks(config)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
    weights = {k: v.detach().contiguous() for k, v in to_mae(model.state_dict()).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ---------------------------------------------------------------------- checking


def random_images(model: torch.nn.Module, batch: int, channels: int = 3) -> torch.Tensor:
    """(batch, channels, height, width), normal, the same at each call."""
    generator = torch.Generator().manual_seed(batch)
    size = as_pair(model.config.image_size)
    return torch.randn(batch, channels, *size, generator=generator)


@torch.no_grad()
def check_classifier(
    model: SSSDForImageClassification, folder: Path, temperature: float = 1.0
) -> float:
    """The greatest difference between the logits of the stock model in `folder` and those of
    `model`, the original, divided by `temperature`.

    Raises:
        ValueError: the stock class finds weights missing or left over.
    """
    stock_type = json.loads((folder / "config.json").read_text())["model_type"]
    cls = {"vit": ViTForImageClassification, "dinov2": Dinov2ForImageClassification}[stock_type]
    stock = _load_stock(cls, folder)
    images = random_images(model, 4)
    return (stock(images).logits - model(images).logits / temperature).abs().max().item()


@torch.no_grad()
def check_vit_mae(model: SSSDForPreTraining, folder: Path) -> float:
    """The greatest difference between the predicted pixels of the stock model in `folder` and of
    `model`, with one mask.

    Raises:
        ValueError: the stock class finds weights missing or left over.
    """
    stock = _load_stock(ViTMAEForPreTraining, folder)
    images = random_images(model, 2, model.config.num_channels)
    noise = torch.rand(2, model.config.num_patches, generator=torch.Generator().manual_seed(0))
    difference = stock(images, noise=noise).logits - model(images, noise=noise).logits
    return difference.abs().max().item()


def _load_stock(cls: type, folder: Path) -> torch.nn.Module:
    stock, info = cls.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ValueError(f"{cls.__name__} can't load the export: {info}; please report it.")
    return stock.eval()


@torch.no_grad()
def check_timm(
    model: SSSDForImageClassification, folder: Path, temperature: float = 1.0
) -> float | None:
    """As `check_classifier`, with timm's own class and a strict load, and with the model that users
    of `local-dir` get, where this timm knows that; None without timm."""
    try:
        import timm
    except ImportError:  # it needs torchvision, which this package does not
        return None
    description = json.loads((folder / "config.json").read_text())
    strict = timm.create_model(description["architecture"], **description["model_args"])
    strict.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    loaded = [strict]
    try:
        loaded.append(timm.create_model(f"local-dir:{folder}", pretrained=True))
    except AssertionError:  # an older timm, which knows the Hub alone as a source
        logger.warning("this timm can't load from a folder: its class alone was compared")
    images = random_images(model, 4)
    expected = model(images).logits / temperature
    eps = description["sssd_hf"]["layer_norm_eps"]
    if eps != TIMM_EPS:  # else as it is built: an epsilon that timm has changed must not be hidden
        for theirs in loaded:
            set_norm_eps(theirs, eps)
    return max((theirs.eval()(images) - expected).abs().max().item() for theirs in loaded)


def set_norm_eps(model: torch.nn.Module, eps: float) -> None:
    """What `timm_use` tells users to do."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps


def timm_use(eps: float) -> str:
    """The code that loads an export with timm, FOLDER being its place; with norms of other than
    timm's epsilon, that sets it."""
    load = 'model = timm.create_model("local-dir:" + FOLDER, pretrained=True)'
    if eps == TIMM_EPS:
        return load
    return (
        f"import timm\nimport torch\n\n{load}\n"
        f"for module in model.modules():  # timm builds them with {TIMM_EPS:g}\n"
        "    if isinstance(module, torch.nn.LayerNorm):\n"
        f"        module.eps = {eps!r}"
    )
