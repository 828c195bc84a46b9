"""Mappings of configs and state dicts between SSSD and ViTMAE, ViT, and the original MAE.

Pure functions on dicts; only `read_checkpoint` touches files. ViTMAE and ViT come in two key
generations: transformers up to 5.8 ("old") and from 5.10 ("new"); the 5.23 release also writes
`decoder.decoder_encoder.layer.N`. All are read; either is written.

This file travels with a checkpoint as remote code: it imports torch and transformers only.
"""

import argparse
import json
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PretrainedConfig
from transformers.utils import cached_file

StateDict = dict[str, torch.Tensor]

_SHARED_FIELDS = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps image_size "
    "patch_size num_channels qkv_bias id2label label2id problem_type"
).split()
_DECODER_FIELDS = (
    "decoder_num_attention_heads decoder_hidden_size decoder_num_hidden_layers "
    "decoder_intermediate_size mask_ratio norm_pix_loss"
).split()
# what a config.json may leave out, because it is the stock class's default
_STOCK_DEFAULTS = {"layer_norm_eps": 1e-12, "norm_pix_loss": False}

# SSSD's name -> the stock name without its layer prefix: (new generation, old generation)
_LAYER_NAMES = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "attention.proj": ("attention.o_proj", "attention.output.dense"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
_QKV_NAMES = (
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
)
_OTHER_NAMES = {
    "encoder.embeddings.cls_token": "vit.embeddings.cls_token",
    "encoder.embeddings.position_embeddings": "vit.embeddings.position_embeddings",
    "encoder.embeddings.projection": "vit.embeddings.patch_embeddings.projection",
    "encoder.norm": "vit.layernorm",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.position_embeddings": "decoder.decoder_pos_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder.pred": "decoder.decoder_pred",
    "classifier": "classifier",
}
# original MAE (facebookresearch/mae, models_mae.py) -> SSSD
_MAE_NAMES = {
    "cls_token": "encoder.embeddings.cls_token",
    "pos_embed": "encoder.embeddings.position_embeddings",
    "patch_embed.proj": "encoder.embeddings.projection",
    "norm": "encoder.norm",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.position_embeddings",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.pred",
    "head": "classifier",
}
# attention heads of MAE's published widths; the weights alone do not tell them
_MAE_HEADS = {768: 12, 1024: 16, 1280: 16}

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# arguments of from_pretrained that are also attributes of a config
_LOADING_OPTIONS = ("dtype", "torch_dtype", "attn_implementation", "name_or_path")
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

_PARAMETER = r"(\.weight|\.bias|)$"


def _rename(key: str, names: dict[str, str]) -> str | None:
    match = re.fullmatch(r"(.*?)" + _PARAMETER, key)
    return names[match[1]] + match[2] if match[1] in names else None


def config_from_stock(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of `SSSDConfig` from those of a `ViTMAEConfig` or `ViTConfig` (as dicts)."""
    if config.get("model_type") not in ("vit_mae", "vit"):
        raise ValueError(
            f"A checkpoint of model_type={config.get('model_type')!r} can't be converted to SSSD; "
            "expected 'sssd', 'vit_mae' or 'vit'."
        )
    fields = {**_STOCK_DEFAULTS, **config}
    names = _SHARED_FIELDS + (_DECODER_FIELDS if config["model_type"] == "vit_mae" else [])
    # a foreign checkpoint has no distillation head: plain MAE until the caller asks for one
    return {name: fields[name] for name in names if name in fields} | {"distillation_weight": 0.0}


def config_to_stock(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Fields of a `ViTMAEConfig` (`"vit_mae"`) or `ViTConfig` (`"vit"`) from an SSSD config."""
    if model_type == "vit" and config.get("pooling", "cls") != "cls":
        raise ValueError(
            f"pooling={config['pooling']!r} can't be expressed by ViTForImageClassification, which "
            "reads the CLS token; expected pooling='cls'."
        )
    names = _SHARED_FIELDS + (_DECODER_FIELDS if model_type == "vit_mae" else [])
    return {name: config[name] for name in names if config.get(name) is not None}


def from_stock(state_dict: StateDict) -> StateDict:
    """SSSD's state dict from one of ViTMAE or ViT, of any key generation.

    Keys without the `vit.` prefix (a bare `ViTMAEModel` or `ViTModel`) are understood. A pooler is
    dropped (the image classifiers have none).

    Raises:
        ValueError: a key is unknown, or a query, key or value is missing.
    """
    others = {stock: own for own, stock in _OTHER_NAMES.items()}
    layer_names = {name: own for own, names in _LAYER_NAMES.items() for name in names}
    qkv_parts = {name: part for names in _QKV_NAMES for part, name in enumerate(names)}
    layer_pattern = re.compile(
        r"(?:(?:vit\.)?(?:encoder\.layer|layers)|"
        r"(decoder)\.(?:decoder_layers|decoder_encoder\.layer|layers|encoder\.layer))"
        r"\.(\d+)\.(.+?)" + _PARAMETER
    )
    result: StateDict = {}
    qkv: dict[str, list[torch.Tensor | None]] = {}
    for key, tensor in state_dict.items():
        if re.match(r"(vit\.)?pooler\.", key) or key.endswith("embeddings.mask_token"):
            continue
        layer = layer_pattern.fullmatch(key)
        if layer:
            prefix = f"{'decoder' if layer[1] else 'encoder'}.layers.{layer[2]}."
            if layer[3] in qkv_parts:
                parts = qkv.setdefault(f"{prefix}attention.qkv{layer[4]}", [None] * 3)
                parts[qkv_parts[layer[3]]] = tensor
                continue
            name = layer_names.get(layer[3])
            target = f"{prefix}{name}{layer[4]}" if name else None
        else:
            target = _rename(key, others) or _rename(f"vit.{key}", others)
        if target is None:
            raise ValueError(f"Weight {key!r} of the checkpoint is unknown; is it a ViTMAE or ViT?")
        result[target] = tensor
    for key, parts in qkv.items():
        if any(part is None for part in parts):
            raise ValueError(f"The checkpoint lacks a query, key or value of {key!r}.")
        result[key] = torch.cat(parts)
    return result


def to_stock(state_dict: StateDict, generation: str = "new") -> StateDict:
    """The state dict of `ViTMAEForPreTraining` or `ViTForImageClassification` from SSSD's.

    The distillation heads, which the stock classes lack, are left out.
    """
    if generation not in ("new", "old"):
        raise ValueError(f"generation={generation!r} is unknown; allowed: 'new', 'old'.")
    old = generation == "old"
    prefixes = {
        "encoder": "vit.encoder.layer" if old else "vit.layers",
        "decoder": "decoder.decoder_layers",
    }
    result: StateDict = {}
    for key, tensor in state_dict.items():
        if key.startswith("distillation."):
            continue
        layer = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)(\.weight|\.bias)", key)
        if not layer:
            result[_rename(key, _OTHER_NAMES)] = tensor
            continue
        prefix = f"{prefixes[layer[1]]}.{layer[2]}"
        if layer[3] == "attention.qkv":
            for name, part in zip(_QKV_NAMES[old], tensor.chunk(3)):
                result[f"{prefix}.{name}{layer[4]}"] = part.clone()
        else:
            result[f"{prefix}.{_LAYER_NAMES[layer[3]][old]}{layer[4]}"] = tensor
    return result


def from_mae(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], StateDict]:
    """(fields of `SSSDConfig`, state dict) from an original MAE checkpoint, `{"model": ...}`.

    Widths and depths are read off the weights; heads are MAE's own (encoder 12 or 16 by width,
    decoder 16); mask ratio and pixel norm come from the stored `args` where there are any.
    """
    weights = checkpoint.get("model", checkpoint)
    result: StateDict = {}
    for key, tensor in weights.items():
        block = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", key)
        if block:
            name = re.sub(r"^attn\.", "attention.", block[3])
            target = f"{'decoder' if block[1] else 'encoder'}.layers.{block[2]}.{name}"
        else:
            target = _rename(key, _MAE_NAMES)
        if target is None:
            raise ValueError(f"Weight {key!r} is unknown; is it a checkpoint of the original MAE?")
        result[target] = tensor

    def depth(part: str) -> int:
        return len({key.split(".")[2] for key in result if key.startswith(f"{part}.layers.")})

    projection = result["encoder.embeddings.projection.weight"]  # (width, channels, patch, patch)
    width, channels, patch = projection.shape[:3]
    grid = round((result["encoder.embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    arguments = vars(checkpoint["args"]) if "args" in checkpoint else {}
    fields = {
        "hidden_size": width,
        "num_hidden_layers": depth("encoder"),
        "num_attention_heads": _MAE_HEADS.get(width, max(1, width // 64)),
        "intermediate_size": result["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "image_size": grid * patch,
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "mask_ratio": arguments.get("mask_ratio", 0.75),
        "norm_pix_loss": arguments.get("norm_pix_loss", True),
        "distillation_weight": 0.0,
    }
    if "decoder.embed.weight" in result:
        fields |= {
            "decoder_hidden_size": result["decoder.embed.weight"].shape[0],
            "decoder_num_hidden_layers": depth("decoder"),
            "decoder_num_attention_heads": 16,
            "decoder_intermediate_size": result["decoder.layers.0.mlp.fc1.weight"].shape[0],
        }
    return fields, result


def interpolate_positions(
    table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """A position table (1, 1 + h * w, width) with its CLS row, bicubic in 2-D from `grid` (h, w)
    to `new_grid`; fp32 inside, the table's dtype outside."""
    if grid == new_grid:
        return table
    patches = table[:, 1:].float().unflatten(1, grid).permute(0, 3, 1, 2)  # (1, width, h, w)
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(table.dtype)  # (1, new h * new w, width)
    return torch.cat([table[:, :1], patches], dim=1)


def resize_positions(
    state_dict: StateDict, grid: tuple[int, int], new_grid: tuple[int, int]
) -> StateDict:
    """A state dict of SSSD with encoder and decoder positions for another grid of patches."""
    return {
        key: interpolate_positions(tensor, grid, new_grid)
        if key.endswith("position_embeddings")
        else tensor
        for key, tensor in state_dict.items()
    }


def grey_statistics(mean: list[float], std: list[float]) -> tuple[float, float]:
    """The (mean, spread) that a one-channel model's processor uses in place of three."""
    return sum(mean) / len(mean), sum(std) / len(std)


def to_one_channel(
    state_dict: StateDict, patch_pixels: int, mean: list[float], std: list[float]
) -> StateDict:
    """A three-channel state dict of SSSD for grey images.

    A grey image, normalised by `grey_statistics(mean, std)`, gets the embedding that the
    three-channel model gives its three equal channels, normalised by `mean` and `std`: each
    channel's weights are scaled by the ratio of the spreads, and the bias takes up the difference
    of the means. The decoder's prediction is averaged over the channels.

    Args:
        patch_pixels: pixels in a patch (height times width).
        mean, std: three values each, what the three-channel model's images are normalised with.
    """
    grey_mean, grey_std = grey_statistics(mean, std)
    result = dict(state_dict)
    prefix = "encoder.embeddings.projection"
    weight = state_dict[f"{prefix}.weight"].double()  # (width, 3, patch, patch)
    spread = torch.tensor(std, dtype=torch.float64, device=weight.device)
    shift = (grey_mean - torch.tensor(mean, dtype=torch.float64, device=weight.device)) / spread
    bias = state_dict[f"{prefix}.bias"]
    result[f"{prefix}.bias"] = (bias.double() + weight.sum((2, 3)) @ shift).to(bias.dtype)
    grey = (weight * (grey_std / spread)[None, :, None, None]).sum(1, keepdim=True)
    result[f"{prefix}.weight"] = grey.to(bias.dtype)
    for name in ("decoder.pred.weight", "decoder.pred.bias"):
        if name in result:  # rows: (pixel, channel)
            result[name] = result[name].unflatten(0, (patch_pixels, 3)).mean(1)
    return result


def read_checkpoint(
    name_or_path: str | os.PathLike, **hub_kwargs: Any
) -> tuple[StateDict, tuple[list[float], list[float]]]:
    """(raw state dict, (image mean, image std)) of a folder or Hub repository.

    safetensors first, one file or shards; else `pytorch_model.bin` with `weights_only=True`. The
    statistics are those of `preprocessor_config.json`, else ImageNet's (MAE's).
    """

    def find(filename: str) -> str | None:
        return cached_file(
            name_or_path,
            filename,
            _raise_exceptions_for_missing_entries=False,
            **hub_kwargs,
        )

    statistics = _IMAGENET
    if path := find("preprocessor_config.json"):
        with open(path) as file:
            processor = json.load(file)
        if "image_mean" in processor and "image_std" in processor:
            statistics = (processor["image_mean"], processor["image_std"])
    for single, read in (
        ("model.safetensors", load_file),
        ("pytorch_model.bin", lambda file: torch.load(file, "cpu", weights_only=True)),
    ):
        if path := find(single):
            return read(path), statistics
        if index := find(f"{single}.index.json"):
            with open(index) as file:
                shards = sorted(set(json.load(file)["weight_map"].values()))
            return {k: v for shard in shards for k, v in read(find(shard)).items()}, statistics
    raise OSError(
        f"{name_or_path} holds no weights; expected model.safetensors or pytorch_model.bin, "
        "whole or in shards with their index."
    )


def read_mae_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Any], StateDict]:
    """`from_mae` of a `.pth` file; unpickles tensors and an `argparse.Namespace`, nothing else."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return from_mae(torch.load(path, map_location="cpu", weights_only=True))


@dataclass
class ForeignCheckpoint:
    """A checkpoint on its way into SSSD: config fields, weights under SSSD's names, and what its
    images are normalised with."""

    name: str
    fields: dict[str, Any]
    state_dict: StateDict
    mean: list[float]
    std: list[float]

    def build_config(self, config_class: type, kwargs: dict[str, Any]) -> tuple[Any, dict]:
        """(config, the arguments left for `PreTrainedModel.from_pretrained`)."""
        kwargs = dict(kwargs)
        given = kwargs.pop("config", None)
        if given is not None:
            return given, kwargs
        known = config_class()
        overrides = {
            key: kwargs.pop(key)
            for key in list(kwargs)
            if hasattr(known, key) and key not in _LOADING_OPTIONS
        }
        fields = dict(self.fields)
        if {"num_labels", "id2label", "label2id"} & overrides.keys():
            fields = {k: v for k, v in fields.items() if k not in ("id2label", "label2id")}
        return config_class(**{**fields, **overrides}), kwargs


def load_foreign(
    name_or_path: str | os.PathLike, kwargs: dict[str, Any]
) -> ForeignCheckpoint | None:
    """The checkpoint, converted; None where the stock `from_pretrained` can load it as it is.

    Args:
        kwargs: those of `from_pretrained`.
    """
    name = str(name_or_path)
    if name.endswith(".pth"):
        fields, weights = read_mae_checkpoint(name)
        return ForeignCheckpoint(name, fields, weights, *_IMAGENET)
    hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
    stored, _ = PretrainedConfig.get_config_dict(name, **hub)
    if stored.get("model_type") != "sssd":
        fields = config_from_stock(stored)
        weights, (mean, std) = read_checkpoint(name, **hub)
        return ForeignCheckpoint(name, fields, from_stock(weights), mean, std)

    def asked(field: str) -> Any:
        if kwargs.get("config") is not None:
            return getattr(kwargs["config"], field)
        return kwargs.get(field, stored[field])

    if all(asked(field) == stored[field] for field in ("image_size", "num_channels")):
        return None
    weights, (mean, std) = read_checkpoint(name, **hub)
    if not any(key.startswith("encoder.") for key in weights):  # a bare SSSDModel
        weights = {f"encoder.{key}": tensor for key, tensor in weights.items()}
    return ForeignCheckpoint(name, stored, weights, mean, std)


def fit_to(checkpoint: ForeignCheckpoint, config: Any, parts: tuple[str, ...]) -> StateDict:
    """The weights of `parts` (first words of the names), for `config`'s image size and channels.

    Raises:
        ValueError: another patch size, or one channel asked to become three.
    """
    fields, weights = checkpoint.fields, checkpoint.state_dict

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    patch = pair(fields["patch_size"])
    if patch != pair(config.patch_size):
        raise ValueError(
            f"{checkpoint.name} has patch_size={fields['patch_size']}, and the config asks for "
            f"{config.patch_size}: patches can't be converted. Use the checkpoint's patch_size."
        )
    if fields["num_channels"] != config.num_channels:
        if (fields["num_channels"], config.num_channels) != (3, 1):
            raise ValueError(
                f"{checkpoint.name} has num_channels={fields['num_channels']}, and the config asks "
                f"for {config.num_channels}; only three channels can become one (a one-channel "
                "SSSD model accepts three-channel images as it is)."
            )
        weights = to_one_channel(weights, patch[0] * patch[1], checkpoint.mean, checkpoint.std)
    image = pair(fields["image_size"])
    grid = (image[0] // patch[0], image[1] // patch[1])
    weights = resize_positions(weights, grid, config.grid_size)
    return {key: tensor for key, tensor in weights.items() if key.split(".")[0] in parts}
