"""Configuration of the SSSD models: ViTMAE's fields, plus those of the self-distillation loss.

This file travels with a checkpoint as remote code: it imports torch and transformers only.
"""

import math
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import ViTMAEConfig
from transformers.activations import ACT2FN

# (hidden_size, num_hidden_layers, num_attention_heads), the ViT sizes of timm
_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}

# (decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads). A light decoder is
# enough for small data: a heavy one over-fits (arXiv 2212.05677) and costs more than the encoder.
_LIGHT_DECODERS = {"tiny": (128, 2, 4), "small": (192, 4, 6), "base": (256, 4, 8)}
_MAE_DECODER = (512, 8, 16)

DISTILLATION_PRESETS: dict[str, dict[str, Any]] = {
    # token by token, smooth L1 to the decoder's layer-normalised, detached output: the defaults
    "stable": {},
    # SD-MAE (arXiv 2203.16983) as its authors coded it: the likeliest reading of SSSD-COVID
    "sd_mae": {
        "distillation_weight": 0.2,
        "distillation_weighting": "convex",
        "distillation_schedule": "constant",
        "distillation_pooling": "logits",
        "distillation_head": "dino",
        "distillation_distance": "cross_entropy",
        "distillation_target": "raw",
        "distillation_stop_gradient": False,
        "distillation_teacher_head": "joint",
    },
    # one vector an image: the encoder's mean predicts the mean over all of the decoder's tokens
    "global": {
        "distillation_tokens": "all",
        "distillation_pooling": "features",
        "distillation_head": "mlp",
        "distillation_distance": "cosine",
        "distillation_target": "raw",
    },
    # the plain masked autoencoder: no head is built and nothing extra is computed
    "mae": {"distillation_weight": 0.0},
}

_CHOICES = {
    "pooling": ("cls", "mean"),
    "distillation_weighting": ("additive", "convex"),
    "distillation_schedule": ("linear_warmup", "constant"),
    "distillation_tokens": ("visible", "visible_cls", "all"),
    "distillation_pooling": ("none", "features", "logits"),
    "distillation_head": ("linear", "mlp", "dino"),
    "distillation_distance": ("smooth_l1", "mse", "cosine", "cross_entropy"),
    "distillation_target": ("layer_norm", "standardize", "standardize_per_position", "raw"),
    "distillation_teacher_head": ("ema", "shared", "joint"),
}
_ABOVE_0, _BELOW_1 = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0)
# field -> (lowest, highest, what is allowed), ends included
_RANGES = {
    "hidden_size": (1, None, "an integer >= 1"),
    "num_hidden_layers": (1, None, "an integer >= 1"),
    "num_attention_heads": (1, None, "an integer >= 1"),
    "intermediate_size": (1, None, "an integer >= 1"),
    "decoder_hidden_size": (1, None, "an integer >= 1"),
    "decoder_num_hidden_layers": (1, None, "an integer >= 1"),
    "decoder_num_attention_heads": (1, None, "an integer >= 1"),
    "decoder_intermediate_size": (1, None, "an integer >= 1"),
    "layer_norm_eps": (0.0, None, "a number >= 0"),
    "initializer_range": (0.0, None, "a number >= 0"),
    "mask_ratio": (0.0, 1.0, "a number from 0 to 1"),
    "hidden_dropout_prob": (0.0, _BELOW_1, "a number >= 0 and < 1"),
    "attention_probs_dropout_prob": (0.0, _BELOW_1, "a number >= 0 and < 1"),
    "drop_path_rate": (0.0, _BELOW_1, "a number >= 0 and < 1"),
    "label_smoothing": (0.0, 1.0, "a number from 0 to 1"),
    "distillation_weight": (0.0, None, "a number >= 0 (at most 1 where the weighting is convex)"),
    "distillation_warmup_ratio": (0.0, 1.0, "a number from 0 to 1"),
    "distillation_student_temperature": (_ABOVE_0, None, "a number > 0"),
    "distillation_teacher_temperature": (_ABOVE_0, None, "a number > 0"),
    "distillation_center_momentum": (0.0, 1.0, "a number from 0 to 1"),
    "distillation_teacher_momentum": (0.0, 1.0, "a number from 0 to 1"),
    "distillation_num_prototypes": (2, None, "an integer >= 2"),
    "distillation_head_hidden_size": (1, None, "an integer >= 1"),
    "distillation_bottleneck_size": (1, None, "an integer >= 1"),
}


def _is_real(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def as_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """`value` as (height, width); one integer stands for both."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class SSSDConfig(ViTMAEConfig):
    """Configuration of `SSSDModel`, `SSSDForPreTraining` and `SSSDForImageClassification`.

    The fields of `transformers.ViTMAEConfig` keep their names; two of their defaults are MAE's own
    (arXiv 2111.06377) instead of the library's: `layer_norm_eps=1e-6` and `norm_pix_loss=True`.

    Args (beside ViTMAE's):
        pooling: what the classifier reads: `"cls"` (the default; such a classifier is also a plain
            ViT) or `"mean"` of the patch tokens.
        drop_path_rate: stochastic depth of the last layer, 0 <= rate < 1; rises linearly from 0.
        label_smoothing: 0 to 1, in the training loss of a single-label classifier.
        class_weights: one weight > 0 a class in the training loss, or None.
        preparation: how images become arrays where `ViTImageProcessor` cannot say it (letterbox,
            DICOM windows, slices of volumes): fields of `data.preparation.Preparation`; None: as
            the processor does it.
        calibration: what turns a classifier's probabilities into decisions, fitted on validation
            images: `temperature` (of softmax(logits / temperature)), `threshold` (on the calibrated
            probability of class 1, None: the most probable class), and how it was made, `rule` and
            `fitted_on`; None: not calibrated. `forward` does not use it.
        distillation_weight: lambda (additive) or p (convex) of the loss; 0 is plain MAE.
        distillation_weighting: `"additive"` L_rec + w L_sd, or `"convex"` (1 - w) L_rec + w L_sd.
        distillation_schedule: of the weight: `"linear_warmup"` over the first
            `distillation_warmup_ratio` of the steps, or `"constant"`.
        distillation_tokens: `"visible"` patches, `"visible_cls"` (with the CLS token), or `"all"`:
            the student's visible patches against all patches of the decoder (needs pooling).
        distillation_pooling: `"none"` (token by token), mean of `"features"` or of head `"logits"`.
        distillation_head: `"linear"` or `"mlp"` on the student (width -> decoder width), or
            `"dino"` heads on both sides.
        distillation_distance: `"smooth_l1"`, `"mse"`, `"cosine"`, or `"cross_entropy"` with
            temperatures and centring (needs the dino heads).
        distillation_target: the teacher's features as `"layer_norm"` (without affine),
            `"standardize"` (per channel, over images and positions, by running statistics),
            `"standardize_per_position"`, or `"raw"`.
        distillation_stop_gradient: whether the teacher's side is detached.
        distillation_teacher_head: the dino teacher head is the `"ema"` of the student's,
            `"shared"` with it, or `"joint"` (its own, trained; needs no stop-gradient).
        distillation_layer: the decoder block (0-based) that teaches; None: the last one, after the
            decoder's norm.

    Raises:
        ValueError: a field is out of range; the message names it, its value and what is allowed.
    """

    model_type = "sssd"
    keys_to_ignore_at_inference = [  # a list: Trainer appends to it
        "reconstruction_loss",
        "distillation_loss",
        "mask",
        "ids_restore",
        "encoder_last_hidden_state",
        "decoder_last_hidden_state",
        "distillation_statistics",
    ]

    layer_norm_eps: float = 1e-6
    norm_pix_loss: bool = True
    pooling: str = "cls"
    drop_path_rate: float | int = 0.0
    label_smoothing: float | int = 0.0
    class_weights: list[float | int] | None = None
    preparation: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    distillation_weight: float | int = 0.2
    distillation_weighting: str = "additive"
    distillation_schedule: str = "linear_warmup"
    distillation_warmup_ratio: float | int = 0.1
    distillation_tokens: str = "visible"
    distillation_pooling: str = "none"
    distillation_head: str = "linear"
    distillation_distance: str = "smooth_l1"
    distillation_target: str = "layer_norm"
    distillation_stop_gradient: bool = True
    distillation_teacher_head: str = "ema"
    distillation_layer: int | None = None
    distillation_student_temperature: float | int = 0.1
    distillation_teacher_temperature: float | int = 0.04
    distillation_center_momentum: float | int = 0.9
    distillation_teacher_momentum: float | int = 0.996
    distillation_num_prototypes: int = 4096
    distillation_head_hidden_size: int = 2048
    distillation_bottleneck_size: int = 256

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.validate_ranges()

    @classmethod
    def from_size(
        cls, size: str, decoder: str = "light", distillation: str = "stable", **kwargs: Any
    ) -> "SSSDConfig":
        """A named size (`tiny`, `small`, `base`), decoder (`light`, `mae`) and preset of the loss
        (`stable`, `sd_mae`, `global`, `mae`); any field may be given beside them."""
        for name, value, allowed in (
            ("size", size, _SIZES),
            ("decoder", decoder, ("light", "mae")),
            ("distillation", distillation, DISTILLATION_PRESETS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}.")
        width, depth, heads = _SIZES[size]
        decoder_width, decoder_depth, decoder_heads = (
            _LIGHT_DECODERS[size] if decoder == "light" else _MAE_DECODER
        )
        fields = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": decoder_depth,
            "decoder_num_attention_heads": decoder_heads,
            "decoder_intermediate_size": 4 * decoder_width,
        }
        return cls(**{**fields, **DISTILLATION_PRESETS[distillation], **kwargs})

    @classmethod
    def tiny(cls, **kwargs: Any) -> "SSSDConfig":
        """ViT-Tiny: 192 wide, 12 layers. See `from_size`."""
        return cls.from_size("tiny", **kwargs)

    @classmethod
    def small(cls, **kwargs: Any) -> "SSSDConfig":
        """ViT-Small: 384 wide, 12 layers. See `from_size`."""
        return cls.from_size("small", **kwargs)

    @classmethod
    def base(cls, **kwargs: Any) -> "SSSDConfig":
        """ViT-Base: 768 wide, 12 layers. See `from_size`."""
        return cls.from_size("base", **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PretrainedConfig.from_dict`; with other classes asked for, the stored calibration and
        class weights, which are of the stored ones, are left out."""
        if cls.has_other_labels(config_dict, kwargs):
            of_labels = ("calibration", "class_weights")
            config_dict = {k: v for k, v in config_dict.items() if k not in of_labels}
        return super().from_dict(config_dict, **kwargs)

    @staticmethod
    def has_other_labels(fields: dict[str, Any], asked: dict[str, Any]) -> bool:
        """Whether `asked` has classes beside those of `fields`, by number or by name."""
        stored = fields.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
        names = {int(index): name for index, name in stored.items()}
        if asked.get("num_labels") not in (None, len(names)):
            return True
        if asked.get("id2label") is not None:
            return {int(index): name for index, name in asked["id2label"].items()} != names
        by_name = {name: index for index, name in names.items()}
        return asked.get("label2id") not in (None, by_name)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As `PretrainedConfig.save_pretrained`; the code that an `auto_map` names goes along."""
        places = getattr(self, "auto_map", None) or {}
        if any("--" not in place for place in places.values()):  # else it lies on the Hub
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            for file in Path(__file__).parent.glob("*_sssd.py"):
                if not (folder / file.name).exists():
                    shutil.copyfile(file, folder / file.name)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches in (height, width)."""
        (height, width), (patch_h, patch_w) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_h, width // patch_w

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    def _fail(self, field: str, allowed: str) -> None:
        raise ValueError(f"SSSDConfig: {field}={getattr(self, field)!r}; allowed: {allowed}.")

    def validate_ranges(self) -> None:
        """Raise ValueError for values with which no model can be built."""
        for field, (lowest, highest, allowed) in _RANGES.items():
            value = getattr(self, field)
            number = _is_real(value) and (isinstance(value, int) or "integer" not in allowed)
            if not (number and lowest <= value <= (highest or math.inf)):
                self._fail(field, allowed)
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                self._fail(field, ", ".join(map(repr, choices)))
        if self.num_channels not in (1, 3):
            self._fail("num_channels", "1 (grey) or 3 (RGB)")
        if self.hidden_act not in ACT2FN:
            self._fail("hidden_act", ", ".join(map(repr, ACT2FN)))
        fields = {"resize_mode", "windows", "slice_axis"}
        if self.preparation is not None and not (
            isinstance(self.preparation, dict) and set(self.preparation) <= fields
        ):
            self._fail("preparation", f"None, or a dict of {', '.join(sorted(fields))}")
        if self.calibration is not None:
            self._validate_calibration()
        if self.num_labels < 1:
            self._fail("num_labels", "an integer >= 1")
        self._validate_shapes()
        self._validate_distillation()
        # not zero: a part batch of such a class alone would have no mean
        if self.class_weights is not None and not (
            len(self.class_weights) == self.num_labels
            and all(0 < weight < math.inf for weight in self.class_weights)
        ):
            self._fail("class_weights", f"{self.num_labels} weights (num_labels) above 0")

    def validate_mask(self) -> None:
        """Raise ValueError where the mask leaves nothing to see or nothing to predict."""
        visible = int(self.num_patches * (1 - self.mask_ratio))
        if not 0 < visible < self.num_patches:
            self._fail(
                "mask_ratio",
                f"what leaves a visible and a masked patch; it leaves {visible} of "
                f"{self.num_patches} patches visible",
            )

    def _validate_calibration(self) -> None:
        fields = {"temperature", "threshold", "rule", "fitted_on"}
        values = self.calibration if isinstance(self.calibration, dict) else {}
        temperature, threshold = values.get("temperature"), values.get("threshold")
        if not (
            set(values) == fields
            and _is_real(temperature)
            and temperature > 0
            and (threshold is None or (_is_real(threshold) and threshold >= 0))
        ):
            self._fail(
                "calibration",
                f"None, or a dict of {', '.join(sorted(fields))} with a temperature above 0 and a "
                "threshold that is None or at least 0",
            )

    def _validate_shapes(self) -> None:
        for field in ("image_size", "patch_size"):
            value = getattr(self, field)
            if not isinstance(value, int) and len(value) != 2:
                self._fail(field, "an integer or (height, width)")
            if min(as_pair(value)) < 1:
                self._fail(field, "integers >= 1")
        if any(i % p for i, p in zip(as_pair(self.image_size), as_pair(self.patch_size))):
            self._fail("image_size", f"a multiple of patch_size={self.patch_size!r}")
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                self._fail(width, f"a multiple of {heads}={getattr(self, heads)}")
            if getattr(self, width) % 4:
                self._fail(width, "a multiple of 4 (2-D sin-cos positions)")

    def _validate_distillation(self) -> None:
        if self.distillation_weighting == "convex" and self.distillation_weight > 1:
            self._fail("distillation_weight", "at most 1 where distillation_weighting='convex'")
        if not isinstance(self.distillation_stop_gradient, bool):
            self._fail("distillation_stop_gradient", "True or False")
        if self.distillation_tokens == "all" and self.distillation_pooling == "none":
            self._fail(
                "distillation_tokens", "'all' needs distillation_pooling='features'/'logits'"
            )
        if (self.distillation_head == "dino") != (self.distillation_distance == "cross_entropy"):
            self._fail("distillation_distance", "'cross_entropy' with the 'dino' head, and only it")
        if self.distillation_pooling == "logits" and self.distillation_head != "dino":
            self._fail("distillation_pooling", "'logits' needs distillation_head='dino'")
        pooled = self.distillation_pooling == "features"
        if pooled and self.distillation_target == "standardize_per_position":
            self._fail("distillation_target", "any other with distillation_pooling='features'")
        if (
            self.distillation_head == "dino"
            and self.distillation_teacher_head == "joint"
            and self.distillation_stop_gradient
        ):
            self._fail(
                "distillation_teacher_head",
                "'ema' or 'shared' (behind a stop-gradient a joint teacher head would never train)",
            )
        layer = self.distillation_layer
        if layer not in (None, *range(self.decoder_num_hidden_layers)):
            self._fail("distillation_layer", f"None, or 0 to {self.decoder_num_hidden_layers - 1}")
