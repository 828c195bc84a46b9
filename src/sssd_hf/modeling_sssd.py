"""SSSD: a masked autoencoder with encoder-decoder self-distillation, and its classifier.

The architecture is that of ViTMAE (arXiv 2111.06377) and, for the classifier, of ViT; with the same
weights and noise the outputs are equal to the stock classes'. Names of modules follow timm.

This file travels with a checkpoint as remote code: it imports torch and transformers only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_sssd import SSSDConfig, as_pair
from .conversion_sssd import (
    config_from_stock,
    config_to_stock,
    fit_to,
    from_stock,
    interpolate_positions,
    load_foreign,
    to_stock,
)
from .distillation_sssd import DINOHead, SelfDistillation

logger = logging.get_logger(__name__)

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


@dataclass
class SSSDForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, the weighted sum of the two below.
        reconstruction_loss: scalar, mean squared error on the masked patches.
        distillation_loss: scalar, or None where `distillation_weight` is 0.
        logits: (batch, patches, patch pixels * channels), the predicted patches.
        mask: (batch, patches), 1 where a patch was masked.
        ids_restore: (batch, patches), the inverse of the shuffle.
        encoder_last_hidden_state: (batch, 1 + visible, hidden_size).
        decoder_last_hidden_state: (batch, 1 + patches, decoder_hidden_size).
        distillation_statistics: sums over the batch from which `update_teacher` steps the teacher.
        hidden_states, attentions: of the encoder, where asked for.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    distillation_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    decoder_last_hidden_state: torch.Tensor | None = None
    distillation_statistics: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# ---------------------------------------------------------------------- randomness of an image


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, whose products wrap as uint64's do."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def sample_uniform(seeds: torch.Tensor, stream: int, *shape: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), (batch, *shape) fp32: a pure function of each image's int64 seed,
    the stream (what they are for) and the place, with the same bits on CPU and GPU."""
    size = 1
    for length in shape:
        size *= length
    counter = torch.arange(1, size + 1, device=seeds.device)
    key = _mix(seeds + (stream + 1) * -0x61C8864680B583EB)
    bits = _mix(key[:, None] + counter * -0x61C8864680B583EB)
    return ((bits >> 40) & 0xFFFFFF).float().mul(2.0**-24).reshape(len(seeds), *shape)


MASK_STREAM = 0  # layer i uses the streams 4 i + 4 ... 4 i + 7


def _drop(x: torch.Tensor, rate: float, seeds: torch.Tensor | None, stream: int, *shape: int):
    """`x` (batch, tokens, width) times a Bernoulli mask (batch, *shape), kept in expectation."""
    if seeds is None:
        uniform = torch.rand((len(x), *shape), device=x.device)
    else:
        uniform = sample_uniform(seeds, stream, *shape)
    return x * ((uniform >= rate).to(x.dtype) / (1 - rate))


# ---------------------------------------------------------------------- modules


def sincos_positions(grid: tuple[int, int], width: int) -> torch.Tensor:
    """MAE's fixed 2-D position table (1, 1 + h * w, width): a zero row for CLS, then for each patch
    [sin x, cos x, sin y, cos y] (the width half first, as the original code lays it out)."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(patches, (0, 0, 1, 0)).float()[None]


def patchify(images: torch.Tensor, patch: tuple[int, int], pixels_first: bool) -> torch.Tensor:
    """(batch, channels, H, W) -> (batch, patches, values); a patch's values run (row, column,
    channel) as in MAE's target, or (channel, row, column) as a convolution's weights do."""
    x = images.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))  # (b, c, h, p, w, q)
    x = x.permute(0, 2, 4, 3, 5, 1) if pixels_first else x.permute(0, 2, 4, 1, 3, 5)
    return x.flatten(3).flatten(1, 2)


class SSSDEmbeddings(nn.Module):
    """Patch projection, positions and the CLS token."""

    def __init__(self, config: SSSDConfig):
        super().__init__()
        self.config = config
        self.patch = as_pair(config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(
            torch.empty(1, config.num_patches + 1, config.hidden_size)
        )
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, self.patch, stride=self.patch
        )

    def prepare(self, pixel_values: torch.Tensor, interpolate: bool) -> torch.Tensor:
        """Checks the shape, makes three channels grey for a one-channel model, casts."""
        channels, height, width = pixel_values.shape[1:]
        if channels == 3 and self.config.num_channels == 1:
            weights = pixel_values.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)
            pixel_values = (pixel_values * weights).sum(1, keepdim=True)
        elif channels != self.config.num_channels:
            raise ValueError(
                f"pixel_values have {channels} channels; the model expects "
                f"{self.config.num_channels}" + " or 3." * (self.config.num_channels == 1)
            )
        expected = as_pair(self.config.image_size)
        if interpolate and (height % self.patch[0] or width % self.patch[1]):
            raise ValueError(
                f"pixel_values are {height} x {width}, no multiple of patch_size={self.patch}."
            )
        if not interpolate and (height, width) != expected:
            raise ValueError(
                f"pixel_values are {height} x {width}; the model expects {expected[0]} x "
                f"{expected[1]}. Resize them, or pass interpolate_pos_encoding=True."
            )
        return pixel_values.to(self.projection.weight.dtype)

    def positions(self, images: torch.Tensor) -> torch.Tensor:
        grid = (images.shape[2] // self.patch[0], images.shape[3] // self.patch[1])
        return interpolate_positions(self.position_embeddings, self.config.grid_size, grid)

    def forward(self, images: torch.Tensor, ids_keep: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, channels, H, W) -> (batch, 1 + patches, width), or only the patches `ids_keep`
        (batch, visible), in its order: hidden patches are never embedded."""
        positions = self.positions(images)
        cls_token = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        positions = positions[:, 1:]
        if ids_keep is None:
            patches = self.projection(images).flatten(2).transpose(1, 2)
        else:
            values = patchify(images, self.patch, pixels_first=False)
            values = values.gather(1, ids_keep[..., None].expand(-1, -1, values.shape[-1]))
            patches = F.linear(values, self.projection.weight.flatten(1), self.projection.bias)
            positions = positions[0][ids_keep]  # (batch, visible, width)
        return torch.cat([cls_token, patches + positions], dim=1)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain operations, which alone can return its weights."""
    weights = (query @ key.transpose(2, 3)) * scaling
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SSSDAttention(nn.Module):
    """Multi-head self-attention with one product for query, key and value."""

    is_causal = False

    def __init__(self, config: SSSDConfig, width: int, heads: int):
        super().__init__()
        self.config = config  # shared, not copied: a switch of the implementation reaches all
        self.heads = heads
        self.scaling = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, output_attentions: bool):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (batch, tokens, 3, heads, head dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        implementation = self.config._attn_implementation
        attend: Callable = eager_attention
        if implementation not in (None, "eager") and not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        x, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout)
        return self.proj(x.flatten(2)), weights


class SSSDMLP(nn.Module):
    def __init__(self, config: SSSDConfig, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SSSDLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block of the encoder or the decoder."""

    def __init__(
        self,
        config: SSSDConfig,
        width: int,
        heads: int,
        hidden: int,
        index: int = 0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.drop_path = drop_path
        self.stream = 4 * index + 4
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SSSDAttention(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = SSSDMLP(config, width, hidden)

    def _branch(self, x: torch.Tensor, seeds: torch.Tensor | None, branch: int) -> torch.Tensor:
        stream = self.stream + 2 * branch
        if self.training and self.dropout:
            x = _drop(x, self.dropout, seeds, stream, *x.shape[1:])
        if self.training and self.drop_path:
            x = _drop(x, self.drop_path, seeds, stream + 1, 1, 1)
        return x

    def forward(
        self,
        x: torch.Tensor,
        sample_seeds: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(self.norm1(x), output_attentions)
        x = x + self._branch(attended, sample_seeds, 0)
        return x + self._branch(self.mlp(self.norm2(x)), sample_seeds, 1), weights


class SSSDDecoder(nn.Module):
    """MAE's decoder; gives hidden states, from which the encoder is taught, beside the pixels."""

    def __init__(self, config: SSSDConfig):
        super().__init__()
        self.config = config
        width, patch = config.decoder_hidden_size, as_pair(config.patch_size)
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches + 1, width))
        heads, hidden = config.decoder_num_attention_heads, config.decoder_intermediate_size
        self.layers = nn.ModuleList(
            # streams after the encoder's
            SSSDLayer(config, width, heads, hidden, index=config.num_hidden_layers + i)
            for i in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pred = nn.Linear(width, patch[0] * patch[1] * config.num_channels)

    def forward(
        self,
        encoded: torch.Tensor,
        ids_restore: torch.Tensor,
        grid: tuple[int, int],
        sample_seeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> (logits, last hidden state, the hidden state that teaches), CLS kept in the latter."""
        x = self.embed(encoded)
        batch, patches = ids_restore.shape
        hidden = self.mask_token.to(x.dtype).expand(batch, patches + 1 - x.shape[1], -1)
        full = torch.cat([x[:, 1:], hidden], dim=1)
        full = full.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], full], dim=1)  # (batch, 1 + patches, decoder width)
        x = x + interpolate_positions(self.position_embeddings, self.config.grid_size, grid)
        teacher = None
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, sample_seeds)
            if i == self.config.distillation_layer:
                teacher = x
        x = self.norm(x)
        return self.pred(x)[:, 1:], x, x if teacher is None else teacher


# ---------------------------------------------------------------------- models


class SSSDPreTrainedModel(PreTrainedModel):
    config_class = SSSDConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SSSDEmbeddings", "SSSDLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"distillation.teacher_"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """MAE's initialisation; the torch.nn.init functions skip what a checkpoint has filled."""
        super()._init_weights(module)

        def fill(tensor: torch.Tensor, value: torch.Tensor | float) -> None:
            if not getattr(tensor, "_is_hf_initialized", False):
                tensor.copy_(torch.as_tensor(value, dtype=tensor.dtype))

        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if module is getattr(self, "classifier", None):
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, SSSDEmbeddings):
            if not getattr(module.projection.weight, "_is_hf_initialized", False):
                nn.init.xavier_uniform_(module.projection.weight.flatten(1))
            nn.init.normal_(module.cls_token, std=std)
        elif isinstance(module, SSSDDecoder):
            nn.init.normal_(module.mask_token, std=std)
        elif isinstance(module, DINOHead):
            nn.init.normal_(module.prototypes, std=std)
        elif isinstance(module, SelfDistillation):
            # full weight until a loop counts steps; standardising starts as the identity
            starts = {"teacher_weight": self.config.distillation_weight, "teacher_variance": 1.0}
            for name, tensor in module.named_buffers():
                fill(tensor, starts.get(name, 0.0))
            if module.teacher_ema is not None:
                pairs = zip(module.teacher_ema.parameters(), module.student_head.parameters())
                for average, student in pairs:
                    fill(average, student)
        if isinstance(module, (SSSDEmbeddings, SSSDDecoder)):
            table = module.position_embeddings
            fill(table, sincos_positions(self.config.grid_size, table.shape[-1]))

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embeddings.projection

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`; also converts ViTMAE and ViT checkpoints (folder or
        Hub id) and the original MAE's `.pth`, to another image size or to one channel if
        `image_size=` or `num_channels=1` ask for it. What is new (a head) is named in a warning.

        Raises:
            ValueError: the checkpoint is of another kind, or lacks or mismatches encoder weights.
        """
        name = pretrained_model_name_or_path
        foreign = None if name is None else load_foreign(name, kwargs)
        if foreign is None:
            return super().from_pretrained(name, *args, **kwargs)
        config, kwargs = foreign.build_config(cls.config_class, kwargs)
        config.name_or_path = str(name)
        state_dict = fit_to(foreign, config, cls._parts)
        want_info = kwargs.pop("output_loading_info", False)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the library's report can't name the checkpoint; ours does
        try:
            model, info = super().from_pretrained(
                None,
                *args,
                config=config,
                state_dict=state_dict,
                output_loading_info=True,
                **kwargs,
            )
        finally:
            logging.set_verbosity(verbosity)
        missing = sorted(info["missing_keys"])
        lacking = [key for key in missing if not key.startswith(cls._may_be_new)]
        if lacking:
            raise ValueError(f"{name} lacks weights of the encoder: {', '.join(lacking)}.")
        if missing:
            logger.warning(
                f"{cls.__name__} from {name}: new and untrained are {', '.join(missing)}."
            )
        return (model, info) if want_info else model


class SSSDModel(SSSDPreTrainedModel):
    """The encoder. Sees all patches, in order; gives the same output twice."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^distillation\.", r"^classifier\."]
    _parts, _may_be_new = ("encoder",), ()

    def __init__(self, config: SSSDConfig):
        config.validate_ranges()
        super().__init__(config)
        self.embeddings = SSSDEmbeddings(config)
        width, depth = config.hidden_size, config.num_hidden_layers
        self.layers = nn.ModuleList(
            SSSDLayer(
                config,
                width,
                config.num_attention_heads,
                config.intermediate_size,
                index=i,
                drop_path=config.drop_path_rate * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    def encode(
        self,
        images: torch.Tensor,
        ids_keep: torch.Tensor | None = None,
        sample_seeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """`images` as `SSSDEmbeddings.prepare` returns them; of all patches or of `ids_keep`."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x = self.embeddings(images, ids_keep)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, sample_seeds, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        x = self.norm(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=x[:, 0] if self.config.pooling == "cls" else x[:, 1:].mean(1),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        sample_seeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (batch, channels, height, width), normalised; three channels are made grey
                for a one-channel model.
            sample_seeds: (batch,) int64, from which dropout and drop path of each image are drawn
                in training; None draws them from torch's generator.
            interpolate_pos_encoding: whether images of another size than the config's are accepted.
        """
        images = self.embeddings.prepare(pixel_values, bool(interpolate_pos_encoding))
        return self.encode(images, None, sample_seeds, output_hidden_states, output_attentions)


class SSSDForPreTraining(SSSDPreTrainedModel):
    """Encoder, decoder, reconstruction loss and self-distillation loss."""

    _parts = ("encoder", "decoder", "distillation")
    _may_be_new = ("decoder.", "distillation.")
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: SSSDConfig):
        super().__init__(config)
        visible = int(config.num_patches * (1 - config.mask_ratio))
        if not 0 < visible < config.num_patches:
            raise ValueError(
                f"SSSDConfig: mask_ratio={config.mask_ratio} leaves {visible} of "
                f"{config.num_patches} patches visible; allowed: at least one visible and one "
                "masked patch."
            )
        self.encoder = SSSDModel(config)
        self.decoder = SSSDDecoder(config)
        self.distillation = SelfDistillation(config) if config.distillation_weight > 0 else None
        # fixed sin-cos tables, as in MAE
        self.encoder.embeddings.position_embeddings.requires_grad_(False)
        self.decoder.position_embeddings.requires_grad_(False)
        self.post_init()

    @classmethod
    def from_vit_mae(cls, model: PreTrainedModel, **fields: Any) -> "SSSDForPreTraining":
        """An SSSD model with the weights of a live `ViTMAEForPreTraining`; `fields` of the config,
        such as `distillation_weight`, may be given."""
        config = SSSDConfig(**{**config_from_stock(model.config.to_dict()), **fields})
        result = cls(config).to(model.dtype)
        missing, unexpected = result.load_state_dict(from_stock(model.state_dict()), strict=False)
        lacking = [key for key in missing if not key.startswith("distillation.")]
        if lacking or unexpected:
            raise ValueError(f"Not a ViTMAEForPreTraining: lacks {lacking}, has {unexpected}.")
        return result

    def to_vit_mae(self) -> PreTrainedModel:
        """A `ViTMAEForPreTraining` with these weights; the distillation head is left behind."""
        config = ViTMAEConfig(**config_to_stock(self.config.to_dict(), "vit_mae"))
        model = ViTMAEForPreTraining(config).to(self.dtype)
        model.load_state_dict(to_stock(self.state_dict()))
        return model.train(self.training)

    def update_teacher(
        self, step: int, total_steps: int, statistics: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Step the teacher's state after an optimiser step; see `SelfDistillation.update`."""
        if self.distillation is not None:
            self.distillation.update(step, total_steps, statistics)

    def random_masking(
        self, batch: int, patches: int, noise: torch.Tensor | None, seeds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> (ids_keep, ids_restore, mask): the patches of least noise stay visible."""
        if noise is None and seeds is not None:
            noise = sample_uniform(seeds, MASK_STREAM, patches)
        elif noise is None:
            noise = torch.rand(batch, patches, device=self.device)
        visible = int(patches * (1 - self.config.mask_ratio))
        ids_shuffle = noise.argsort(dim=1, stable=True)
        ids_restore = ids_shuffle.argsort(dim=1)
        return ids_shuffle[:, :visible], ids_restore, (ids_restore >= visible).float()

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, patches, patch pixels * channels)."""
        return patchify(pixel_values, self.encoder.embeddings.patch, pixels_first=True)

    def unpatchify(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The inverse of `patchify`; `grid` is (patches down, patches across)."""
        height, width = self.encoder.embeddings.patch
        x = patches.unflatten(2, (height, width, -1)).unflatten(1, grid)  # (b, h, w, p, q, c)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def reconstruction_loss(
        self, images: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error over the masked patches, in fp32."""
        target = self.patchify(images).float()
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        loss = (logits.float() - target).square().mean(-1)
        return (loss * mask).sum() / mask.sum()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        sample_seeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SSSDForPreTrainingOutput:
        """
        Args:
            pixel_values: (batch, channels, height, width), normalised.
            noise: (batch, patches), fixes the mask: the patches of least noise stay visible.
            sample_seeds: (batch,) int64; without `noise`, each image's mask is drawn from its seed.
        """
        images = self.encoder.embeddings.prepare(pixel_values, bool(interpolate_pos_encoding))
        patch = self.encoder.embeddings.patch
        grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
        ids_keep, ids_restore, mask = self.random_masking(
            len(images), grid[0] * grid[1], noise, sample_seeds
        )
        encoded = self.encoder.encode(
            images, ids_keep, sample_seeds, output_hidden_states, output_attentions
        )
        logits, decoded, teacher = self.decoder(
            encoded.last_hidden_state, ids_restore, grid, sample_seeds
        )
        loss = reconstruction_loss = self.reconstruction_loss(images, logits, mask)
        distillation_loss = statistics = None
        if self.distillation is not None:
            distillation_loss, statistics = self.distillation(
                encoded.last_hidden_state, teacher, ids_keep
            )
            weight = self.distillation.teacher_weight
            convex = self.config.distillation_weighting == "convex"
            loss = reconstruction_loss * (1 - weight if convex else 1) + weight * distillation_loss
        return SSSDForPreTrainingOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            distillation_loss=distillation_loss,
            logits=logits,
            mask=mask,
            ids_restore=ids_restore,
            encoder_last_hidden_state=encoded.last_hidden_state,
            decoder_last_hidden_state=decoded,
            distillation_statistics=statistics,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, config: SSSDConfig, training: bool
) -> torch.Tensor:
    """The loss of transformers' classification heads; class weights (a mean weighted by them) and
    label smoothing act on a single-label head, smoothing in training alone."""
    logits = logits.float()
    problem = config.problem_type
    if problem is None:
        integer = labels.dtype in (torch.long, torch.int)
        problem = "single_label_classification" if integer else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else problem
    if problem == "regression":
        return F.mse_loss(logits.view(labels.shape), labels.float())
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    weight = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    smoothing = config.label_smoothing if training else 0.0
    return F.cross_entropy(logits, labels.view(-1), weight=weight, label_smoothing=smoothing)


class SSSDForImageClassification(SSSDPreTrainedModel):
    """Encoder and a linear head. With `pooling="cls"` it is also a plain ViT (`to_vit`)."""

    _parts = ("encoder", "classifier")
    _may_be_new = ("classifier.",)
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^distillation\."]

    def __init__(self, config: SSSDConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = SSSDModel(config)
        self.classifier = (
            nn.Linear(config.hidden_size, config.num_labels)
            if config.num_labels > 0
            else nn.Identity()
        )
        self.post_init()

    def to_vit(self) -> PreTrainedModel:
        """A stock `ViTForImageClassification` with these weights; needs `pooling="cls"`."""
        config = ViTConfig(**config_to_stock(self.config.to_dict(), "vit"))
        model = ViTForImageClassification(config).to(self.dtype)
        model.load_state_dict(to_stock(self.state_dict()))
        return model.train(self.training)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        sample_seeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (batch, channels, height, width), normalised.
            labels: (batch,) class indices; (batch, labels) of 0 and 1; or numbers, by
                `config.problem_type` (inferred as transformers does where it is None).
        """
        images = self.encoder.embeddings.prepare(pixel_values, bool(interpolate_pos_encoding))
        encoded = self.encoder.encode(
            images, None, sample_seeds, output_hidden_states, output_attentions
        )
        logits = self.classifier(encoded.pooler_output)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, self.training)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
