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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.utils import cached_file, logging

from .configuration_sssd import SSSDConfig, as_pair

logger = logging.get_logger(__name__)

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

# fields of SSSD alone, which an export to a stock class keeps in its config
CARRIED_FIELDS = ("calibration", "folded_temperature", "preparation")

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
    found = {name: fields[name] for name in names if name in fields}
    found |= {name: config[name] for name in CARRIED_FIELDS if config.get(name) is not None}
    # a foreign checkpoint has no distillation head: plain MAE until the caller asks for one
    return found | {"distillation_weight": 0.0}


def config_to_stock(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Fields of a `ViTMAEConfig` (`"vit_mae"`) or `ViTConfig` (`"vit"`) from an SSSD config.

    Raises:
        ValueError: the stock class cannot express it.
    """
    if model_type == "vit" and config.get("pooling", "cls") != "cls":
        raise ValueError(
            f"pooling={config['pooling']!r} can't be expressed by ViTForImageClassification, which "
            "reads the CLS token; expected pooling='cls'."
        )
    names = _SHARED_FIELDS + (_DECODER_FIELDS if model_type == "vit_mae" else [])
    fields = {name: config[name] for name in names if config.get(name) is not None}
    for name in ("image_size", "patch_size") if model_type == "vit_mae" else ():
        if len(set(as_pair(fields[name]))) > 1:
            raise ValueError(
                f"{name}={fields[name]} can't be expressed by ViTMAEForPreTraining, which holds "
                "square images and patches alone. Keep the checkpoint as it is."
            )
        fields[name] = as_pair(fields[name])[0]
    return fields


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


def from_stock_model(cls: type, model: PreTrainedModel, **fields: Any) -> PreTrainedModel:
    """A `cls` (SSSDForPreTraining) with the weights of a live `ViTMAEForPreTraining`."""
    config = cls.config_class(**{**config_from_stock(model.config.to_dict()), **fields})
    result = cls(config).to(model.device, model.dtype).train(model.training)
    missing, unexpected = result.load_state_dict(from_stock(model.state_dict()), strict=False)
    lacking = [key for key in missing if not key.startswith("distillation.")]
    if lacking or unexpected:
        raise ValueError(f"Not a ViTMAEForPreTraining: lacks {lacking}, has {unexpected}.")
    return result


def to_stock_model(model: PreTrainedModel, model_type: str) -> PreTrainedModel:
    """A live `ViTMAEForPreTraining` (`"vit_mae"`) or `ViTForImageClassification` (`"vit"`)."""
    config_class, cls = {
        "vit_mae": (ViTMAEConfig, ViTMAEForPreTraining),
        "vit": (ViTConfig, ViTForImageClassification),
    }[model_type]
    config = config_class(**config_to_stock(model.config.to_dict(), model_type))
    result = cls(config).to(model.device, model.dtype).train(model.training)
    result.load_state_dict(to_stock(model.state_dict()))
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
    if "classifier.weight" in result:
        fields["num_labels"] = result["classifier.weight"].shape[0]
    return fields, result


def to_mae(state_dict: StateDict) -> StateDict:
    """The inverse of `from_mae`: weights under the original MAE's names. A classifier's are those
    of timm's `VisionTransformer`, from which MAE's code is made.

    The distillation heads, which MAE lacks, are left out.
    """
    names = {own: theirs for theirs, own in _MAE_NAMES.items()}
    result: StateDict = {}
    for key, tensor in state_dict.items():
        if key.startswith("distillation."):
            continue
        layer = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", key)
        if layer:
            prefix = "decoder_blocks" if layer[1] == "decoder" else "blocks"
            target = f"{prefix}.{layer[2]}.{re.sub(r'^attention[.]', 'attn.', layer[3])}"
        else:
            target = _rename(key, names)
        result[target] = tensor
    return result


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


def to_three_channels(state_dict: StateDict, weights: tuple[float, float, float]) -> StateDict:
    """A one-channel classifier's state dict for RGB images, which it makes grey by the weighted sum
    of the channels: equal to making them grey before the patch projection."""
    name = "encoder.embeddings.projection.weight"
    grey = state_dict[name]  # (width, 1, patch, patch)
    scale = torch.tensor(weights, dtype=torch.float64, device=grey.device)[:, None, None]
    return {**state_dict, name: (grey.double() * scale).to(grey.dtype)}


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
    """A checkpoint on its way into SSSD: its config, its weights under SSSD's names, and what its
    images are normalised with."""

    name: str
    config: SSSDConfig
    state_dict: StateDict
    mean: list[float]
    std: list[float]

    def target_config(self, kwargs: dict[str, Any]) -> tuple[SSSDConfig, dict[str, Any]]:
        """(the config to build with, the arguments left for `from_pretrained`)."""
        if kwargs.get("config") is not None:
            return kwargs["config"], {k: v for k, v in kwargs.items() if k != "config"}
        known, fields = self.config.to_dict(), self.config.to_dict()
        # num_labels is no field of its own: id2label tells it
        overrides = {k: v for k, v in kwargs.items() if k in known or k == "num_labels"}
        overrides = {k: v for k, v in overrides.items() if k not in _LOADING_OPTIONS}
        if type(self.config).has_other_labels(fields, overrides):
            of_labels = ("id2label", "label2id", "calibration", "class_weights")
            fields = {k: v for k, v in fields.items() if k not in of_labels}
        left = {k: v for k, v in kwargs.items() if k not in overrides and k != "config"}
        return type(self.config)(**{**fields, **overrides}), left

    def fit_to(self, config: SSSDConfig, parts: tuple[str, ...]) -> StateDict:
        """The weights of `parts` (first words of the names), for `config`'s image size and
        channels.

        Raises:
            ValueError: another patch size, or one channel asked to become three.
        """
        own, weights = self.config, self.state_dict
        patch = as_pair(own.patch_size)
        if patch != as_pair(config.patch_size):
            raise ValueError(
                f"{self.name} has patch_size={own.patch_size}, and the config asks for "
                f"{config.patch_size}: patches can't be converted. Use the checkpoint's patch_size."
            )
        if own.num_channels != config.num_channels:
            if (own.num_channels, config.num_channels) != (3, 1):
                raise ValueError(
                    f"{self.name} has num_channels={own.num_channels}, and the config asks for "
                    f"{config.num_channels}; only three channels can become one (a one-channel "
                    "SSSD model accepts three-channel images as it is)."
                )
            weights = to_one_channel(weights, patch[0] * patch[1], self.mean, self.std)
        weights = resize_positions(weights, own.grid_size, config.grid_size)
        if own.grid_size != config.grid_size and own.distillation_target.endswith("per_position"):
            gone = ("distillation.teacher_mean", "distillation.teacher_variance")
            weights = {key: tensor for key, tensor in weights.items() if key not in gone}
        return {key: tensor for key, tensor in weights.items() if key.split(".")[0] in parts}

    def load_with(
        self, load: Callable, parts: tuple[str, ...], new: tuple[str, ...], *args, **kwargs
    ) -> Any:
        """What `load`, a class's stock `from_pretrained`, makes of the converted weights.

        Args:
            parts: first words of the names of the weights that the class has.
            new: beginnings of the names that may be missing; they are named in one warning.

        Raises:
            ValueError: other weights are missing, or some have no place in the model.
        """
        config, kwargs = self.target_config(kwargs)
        want_info = kwargs.pop("output_loading_info", False)
        state_dict = self.fit_to(config, parts)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the library's report can't name the checkpoint; ours does
        try:
            model, info = load(
                None,
                *args,
                config=config,
                state_dict=state_dict,
                output_loading_info=True,
                **kwargs,
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):  # memory, a device
                raise
            # "look at the above report", which was not shown
            raise RuntimeError(
                f"{self.name} does not fit the model: some of its weights have other shapes. Of a "
                "head for other classes? With ignore_mismatched_sizes=True such weights are new."
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        model.name_or_path = model.config.name_or_path = self.name
        missing = sorted(info["missing_keys"])
        lacking = [key for key in missing if not key.startswith(new)]
        own = model.state_dict().keys()  # an SSSDModel's without their first word
        # the head of another loss is left behind, as it is where nothing is resized
        of_model = [key for key in state_dict if not key.startswith("distillation.")]
        homeless = [key for key in of_model if not {key, key.removeprefix("encoder.")} & own]
        if lacking or homeless:
            raise ValueError(
                f"{self.name} does not fit the model: it lacks {lacking}, and of its weights these "
                f"have no place: {homeless}. Leave depth, bias and the like as the checkpoint has "
                "them."
            )
        # asked for by ignore_mismatched_sizes, so that others are left
        missing += sorted(key for key, *_ in info["mismatched_keys"])
        if missing:
            logger.warning(
                f"{type(model).__name__} from {self.name}: new and untrained are "
                f"{', '.join(missing)}."
            )
        return (model, info) if want_info else model


def load_foreign(
    name_or_path: str | os.PathLike, config_class: type, kwargs: dict[str, Any]
) -> ForeignCheckpoint | None:
    """The checkpoint, converted; None where the stock `from_pretrained` can load it as it is.

    Args:
        kwargs: those of `from_pretrained`; a `config` given as a path is read.
    """
    name = str(name_or_path)
    if isinstance(kwargs.get("config"), str | os.PathLike):
        kwargs["config"] = config_class.from_pretrained(kwargs["config"])
    if name.endswith(".pth"):
        fields, weights = read_mae_checkpoint(name)
        return ForeignCheckpoint(name, config_class(**fields), weights, *_IMAGENET)
    hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
    fields, _ = PretrainedConfig.get_config_dict(name, **hub)
    if not fields:
        raise ValueError(
            f"{name} has no config.json; expected a checkpoint of SSSD, ViTMAE or ViT. A PEFT "
            "adapter is loaded by AutoModelForImageClassification, or by PeftModel on its base."
        )
    if fields.get("model_type") != "sssd":
        config = config_class(**config_from_stock(fields))
        weights, (mean, std) = read_checkpoint(name, **hub)
        return ForeignCheckpoint(name, config, from_stock(weights), mean, std)
    stored, asked = config_class.from_dict(fields), kwargs.get("config")
    for field in ("image_size", "num_channels"):
        wanted = kwargs.get(
            field, getattr(stored, field) if asked is None else getattr(asked, field)
        )
        if wanted != getattr(stored, field):
            break
    else:
        return None
    weights, (mean, std) = read_checkpoint(name, **hub)
    if not any(key.startswith("encoder.") for key in weights):  # a bare SSSDModel
        weights = {f"encoder.{key}": tensor for key, tensor in weights.items()}
    return ForeignCheckpoint(name, stored, weights, mean, std)
