"""SSSD: a masked autoencoder with encoder-decoder self-distillation, and its classifier.

The architecture is that of ViTMAE (arXiv 2111.06377) and, for the classifier, of ViT; with the same
weights and noise the outputs are equal to the stock classes'. Names of modules follow timm.

This file travels with a checkpoint as remote code: it imports torch and transformers only.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_sssd import SSSDConfig, as_pair
from .conversion_sssd import from_stock_model, interpolate_positions, load_foreign, to_stock_model
from .distillation_sssd import DINOHead, SelfDistillation
from .products_sssd import linear, norm_linear, norm_mlp, project, standardize

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


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

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_last_hidden_state: Tensor | None = None
    distillation_statistics: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


# ---------------------------------------------------------------------- randomness of an image


def splitmix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, whose products wrap as uint64's do."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def sample_uniform(seeds: Tensor, stream: int, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), (batch, *shape) fp32: a pure function of each image's int64 seed,
    the stream (what they are for) and the place, with the same bits on CPU and GPU."""
    # the products wrap to 64 bits; the odd constant is 2^64 over the golden ratio, as an int64
    golden, purpose = -0x61C8864680B583EB, torch.full((), stream + 1, device=seeds.device)
    key = splitmix(seeds + purpose * golden)
    # the zero is no constant to a compiler, which would else compute `counter * golden` from an
    # index of 32 bits (Inductor, torch 2.13)
    counter = torch.arange(1, math.prod(shape) + 1, device=seeds.device) + (seeds.sum() & 0)
    bits = splitmix(key[:, None] + counter * golden)
    return ((bits >> 40) & 0xFFFFFF).float().mul(2.0**-24).reshape(seeds.shape[0], *shape)


MASK_STREAM = 0  # layer i uses the streams 4 i + 4 ... 4 i + 7


def _drop(x: Tensor, rate: float, seeds: Tensor | None, stream: int, *shape: int):
    """`x` (batch, tokens, width) times a Bernoulli mask (batch, *shape), kept in expectation."""
    if seeds is None:
        uniform = torch.rand((x.shape[0], *shape), device=x.device)
    else:
        uniform = sample_uniform(seeds, stream, *shape)
    return x * ((uniform >= rate).to(x.dtype) / (1 - rate))


# ---------------------------------------------------------------------- modules


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """MAE's fixed 2-D position table (1, 1 + h * w, width): a zero row for CLS, then for each patch
    [sin x, cos x, sin y, cos y] (the width half first, as the original code lays it out)."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(patches, (0, 0, 1, 0)).float()[None]


def patchify(images: Tensor, patch: tuple[int, int], pixels_first: bool) -> Tensor:
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
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches + 1, width))
        self.projection = nn.Conv2d(config.num_channels, width, self.patch, stride=self.patch)

    def prepare(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        """Checks the shape, makes three channels grey for a one-channel model, casts."""
        channels, height, width = pixel_values.shape[1:]
        wanted, expected = self.config.num_channels, as_pair(self.config.image_size)
        whole_patches = height % self.patch[0] == 0 and width % self.patch[1] == 0
        fits = whole_patches if interpolate else (height, width) == expected
        if channels not in (wanted, 3) or not fits:
            raise ValueError(
                f"pixel_values have {channels} channels and are {height} x {width}; the model "
                f"expects {wanted if wanted == 3 else '1 or 3'} channels and {expected[0]} x "
                f"{expected[1]}, or, with interpolate_pos_encoding=True, any multiple of "
                f"patch_size={self.config.patch_size}."
            )
        if channels != wanted:
            red, green, blue = pixel_values.split(1, dim=1)
            pixel_values = GREY[0] * red + GREY[1] * green + GREY[2] * blue
        return pixel_values.to(self.projection.weight.dtype)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(patches down, patches across)"""
        return images.shape[2] // self.patch[0], images.shape[3] // self.patch[1]

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """(batch, channels, H, W) -> (batch, 1 + patches, width), or only the patches `ids_keep`
        (batch, visible), in its order: hidden patches are never embedded."""
        positions = interpolate_positions(
            self.position_embeddings, self.config.grid_size, self.grid(images)
        )
        cls_token = (self.cls_token + positions[:, :1]).expand(images.shape[0], -1, -1)
        if ids_keep is None:
            patches = self.projection(images).flatten(2).transpose(1, 2) + positions[:, 1:]
        else:
            values = patchify(images, self.patch, pixels_first=False)
            values = values.gather(1, ids_keep[..., None].expand(-1, -1, values.shape[-1]))
            patches = project(values, self.projection) + positions[0, 1 + ids_keep]
        return torch.cat([cls_token, patches], dim=1)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain operations, which alone can return its weights."""
    weights = (query @ key.transpose(2, 3)) * scaling
    weights = F.softmax(weights, dim=-1).to(query.dtype)  # sums in fp32 in any case
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

    def forward(self, qkv: Tensor, output_attentions: bool):
        """`qkv` (batch, tokens, 3 widths) is the product of `self.qkv` with the normalised tokens,
        which the layer computes in one with their norm."""
        qkv = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (batch, heads, tokens, head dim) each
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        x, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout)
        return linear(x.flatten(2), self.proj), weights


class SSSDLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block of the encoder or the decoder."""

    def __init__(self, config: SSSDConfig, index: int, width: int, heads: int, hidden: int):
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.drop_path = 0.0
        self.stream = 4 * index + 4
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SSSDAttention(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        fc1, fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=ACT2FN[config.hidden_act], fc2=fc2))

    def _branch(self, x: Tensor, seeds: Tensor | None, branch: int) -> Tensor:
        stream = self.stream + 2 * branch
        if self.training and self.dropout:
            x = _drop(x, self.dropout, seeds, stream, *x.shape[1:])
        if self.training and self.drop_path:
            x = _drop(x, self.drop_path, seeds, stream + 1, 1, 1)
        return x

    def forward(
        self, x: Tensor, seeds: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        qkv = norm_linear(x, self.norm1, self.attention.qkv)
        attended, weights = self.attention(qkv, output_attentions)
        x = x + self._branch(attended, seeds, 0)
        return x + self._branch(norm_mlp(x, self.norm2, self.mlp), seeds, 1), weights


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
            SSSDLayer(config, config.num_hidden_layers + i, width, heads, hidden)
            for i in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pred = nn.Linear(width, patch[0] * patch[1] * config.num_channels)

    def forward(
        self, encoded: Tensor, ids_restore: Tensor, grid: tuple[int, int], seeds: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """encoded (batch, 1 + visible, hidden_size), ids_restore (batch, patches) -> logits (batch,
        patches, a patch's pixels), the last hidden state and the one that teaches, both (batch, 1 +
        patches, decoder_hidden_size), CLS first."""
        x = linear(encoded, self.embed)
        batch, patches = ids_restore.shape
        hidden = self.mask_token.to(x.dtype).expand(batch, patches + 1 - x.shape[1], -1)
        full = torch.cat([x[:, 1:], hidden], dim=1)
        full = full.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], full], dim=1)  # (batch, 1 + patches, decoder width)
        x = x + interpolate_positions(self.position_embeddings, self.config.grid_size, grid)
        teacher = None
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, seeds)
            if i == self.config.distillation_layer:
                teacher = x
        x = self.norm(x)
        return linear(x, self.pred)[:, 1:], x, x if teacher is None else teacher


# ---------------------------------------------------------------------- models


class SSSDPreTrainedModel(PreTrainedModel):
    config_class = SSSDConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # the losses are means over a batch; for its **kwargs Trainer would else take the model for one
    # that divides by `num_items_in_batch`, and would add up part batches and processes
    accepts_loss_kwargs = False
    _no_split_modules = ["SSSDEmbeddings", "SSSDLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _frozen: tuple[str, ...] = ()  # parts of the names of parameters that are not trained

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            if any(part in name for part in self._frozen):
                parameter.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """MAE's initialisation; the torch.nn.init functions skip what a checkpoint has filled."""
        super()._init_weights(module)

        def copy_once(tensor: Tensor, value: Tensor) -> None:
            if not getattr(tensor, "_is_hf_initialized", False):
                tensor.copy_(value)

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
            for name, start in module.starts.items():
                nn.init.constant_(module.get_buffer(name), start)
            if module.teacher_ema is not None:
                pairs = zip(module.teacher_ema.parameters(), module.student_head.parameters())
                for average, student in pairs:
                    copy_once(average, student)
        if isinstance(module, (SSSDEmbeddings, SSSDDecoder)):
            table = module.position_embeddings
            copy_once(table, sincos_positions(self.config.grid_size, table.shape[-1]))

    def get_input_embeddings(self) -> nn.Module:
        # a module that is always called as one: FSDP2 gathers its weights then, and not before
        return self.base_model.embeddings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`; also converts ViTMAE and ViT checkpoints (folder or
        Hub id) and the original MAE's `.pth`, to another image size or to one channel if
        `image_size=` or `num_channels=1` ask for it. What is new (a head) is named in a warning.

        Raises:
            ValueError: the checkpoint is of another kind, or its weights do not fit the encoder.
        """
        name, load = pretrained_model_name_or_path, super().from_pretrained
        foreign = None if name is None else load_foreign(name, cls.config_class, kwargs)
        if foreign is None:
            loaded = load(name, *args, **kwargs)
        else:
            loaded = foreign.load_with(load, cls._parts, cls._may_be_new, *args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()  # loading thaws parameters
        return loaded


class SSSDModel(SSSDPreTrainedModel):
    """The encoder. Sees all patches, in order; gives the same output twice."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^distillation\.", r"^classifier\."]
    _parts, _may_be_new = ("encoder",), ()

    def __init__(self, config: SSSDConfig):
        config.validate_ranges()
        super().__init__(config)
        self.embeddings = SSSDEmbeddings(config)
        width, depth = config.hidden_size, config.num_hidden_layers
        sizes = (width, config.num_attention_heads, config.intermediate_size)
        self.layers = nn.ModuleList(SSSDLayer(config, i, *sizes) for i in range(depth))
        for i, layer in enumerate(self.layers):
            layer.drop_path = config.drop_path_rate * i / max(depth - 1, 1)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    def encode(
        self, images: Tensor, ids_keep: Tensor | None = None, seeds: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """`images` as `SSSDEmbeddings.prepare` returns them; of all patches or of `ids_keep`."""

        def asked(name: str) -> bool:
            return getattr(self.config, name) if kwargs.get(name) is None else kwargs[name]

        output_attentions = asked("output_attentions")
        x = self.embeddings(images, ids_keep)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, seeds, output_attentions)
            hidden_states.append(x)
            attentions.append(weights)
        x = self.norm(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=x[:, 0] if self.config.pooling == "cls" else x[:, 1:].mean(1),
            hidden_states=tuple(hidden_states) if asked("output_hidden_states") else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        sample_seeds: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (batch, channels, height, width), normalised; three channels are made grey
                for a one-channel model.
            sample_seeds: (batch,) int64, from which dropout and drop path of each image are drawn
                in training; None draws them from torch's generator.
                Attention dropout knows no seeds: it comes from torch's generator.
            interpolate_pos_encoding: whether images of another size than the config's are accepted.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.
        """
        images = self.embeddings.prepare(pixel_values, interpolate_pos_encoding)
        return self.encode(images, None, sample_seeds, **kwargs)


class SSSDForPreTraining(SSSDPreTrainedModel):
    """Encoder, decoder, reconstruction loss and self-distillation loss."""

    _parts = ("encoder", "decoder", "distillation")
    _may_be_new = ("decoder.", "distillation.")
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]
    # fixed sin-cos tables, as in MAE, and the head that `update_teacher` alone changes
    _frozen = ("position_embeddings", "teacher_ema")
    _keep_in_fp32_modules_strict = {"teacher_[a-z]+"}

    def __init__(self, config: SSSDConfig):
        super().__init__(config)
        self.encoder = SSSDModel(config)
        config.validate_mask()
        self.decoder = SSSDDecoder(config)
        self.distillation = SelfDistillation(config) if config.distillation_weight > 0 else None
        self._freeze()
        self.post_init()

    @classmethod
    def from_vit_mae(cls, model: PreTrainedModel, **fields: Any) -> "SSSDForPreTraining":
        """An SSSD model with the weights of a live `ViTMAEForPreTraining`; `fields` of the config,
        such as `distillation_weight`, may be given."""
        return from_stock_model(cls, model, **fields)

    def to_vit_mae(self) -> PreTrainedModel:
        """A `ViTMAEForPreTraining` with these weights; the distillation head is left behind."""
        return to_stock_model(self, "vit_mae")

    def update_teacher(self, step: int, total_steps: int, statistics: dict | None = None) -> None:
        """Step the teacher's state after an optimiser step; see `SelfDistillation.update`."""
        if self.distillation is not None:
            self.distillation.update(step, total_steps, statistics)

    def random_masking(self, batch: int, patches: int, noise: Tensor | None, seeds: Tensor | None):
        """-> (ids_keep, ids_restore, mask): the patches of least noise stay visible."""
        if noise is None and seeds is None:
            noise = torch.rand(batch, patches, device=self.decoder.mask_token.device)
        elif noise is None:
            noise = sample_uniform(seeds, MASK_STREAM, patches)
        visible = int(patches * (1 - self.config.mask_ratio))
        ids_shuffle = noise.argsort(dim=1, stable=True)
        ids_restore = ids_shuffle.argsort(dim=1)
        return ids_shuffle[:, :visible], ids_restore, (ids_restore >= visible).float()

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, patches, patch pixels * channels)."""
        return patchify(pixel_values, self.encoder.embeddings.patch, pixels_first=True)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of `patchify`; `grid` is (patches down, patches across)."""
        height, width = self.encoder.embeddings.patch
        x = patches.unflatten(2, (height, width, -1)).unflatten(1, grid)  # (b, h, w, p, q, c)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def reconstruction_loss(self, images: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the masked patches, in fp32."""
        target = self.patchify(images).float()
        if self.config.norm_pix_loss:
            target = standardize(target, eps=1e-6)
        loss = F.mse_loss(logits.float(), target, reduction="none").mean(-1)
        return (loss * mask).sum() / mask.sum()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> SSSDForPreTrainingOutput:
        """
        Args:
            pixel_values: (batch, channels, height, width), normalised.
            noise: (batch, patches), fixes the mask: the patches of least noise stay visible.
            sample_seeds: (batch,) int64; without `noise`, each image's mask is drawn from its seed.
            interpolate_pos_encoding, kwargs: as of `SSSDModel.forward`, whose errors it has.
        """
        images = self.encoder.embeddings.prepare(pixel_values, interpolate_pos_encoding)
        grid = self.encoder.embeddings.grid(images)
        ids_keep, ids_restore, mask = self.random_masking(
            images.shape[0], grid[0] * grid[1], noise, sample_seeds
        )
        encoded = self.encoder.encode(images, ids_keep, sample_seeds, **kwargs)
        latent = encoded.last_hidden_state
        logits, decoded, teacher = self.decoder(latent, ids_restore, grid, sample_seeds)
        loss = reconstruction_loss = self.reconstruction_loss(images, logits, mask)
        distillation_loss = statistics = None
        if self.distillation is not None:
            distillation_loss, statistics = self.distillation(latent, teacher, ids_keep)
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
            encoder_last_hidden_state=latent,
            decoder_last_hidden_state=decoded,
            distillation_statistics=statistics,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class SSSDForImageClassification(SSSDPreTrainedModel):
    """Encoder and a linear head. With `pooling="cls"` it is also a plain ViT (`to_vit`)."""

    _parts = ("encoder", "classifier")
    _may_be_new = ("classifier.",)
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^distillation\."]

    def __init__(self, config: SSSDConfig):
        super().__init__(config)
        self.encoder = SSSDModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def to_vit(self) -> PreTrainedModel:
        """A stock `ViTForImageClassification` with these weights; needs `pooling="cls"`."""
        return to_stock_model(self, "vit")

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of transformers' heads; class weights (a mean weighted by them) and label
        smoothing act on a single-label head, smoothing in training alone."""
        config, logits = self.config, logits.float()
        problem, weights = config.problem_type, config.class_weights
        if problem is None:
            integer = labels.dtype in (torch.long, torch.int)
            problem = "single_label_classification" if integer else "multi_label_classification"
            problem = "regression" if config.num_labels == 1 else problem
        if problem == "regression":
            return F.mse_loss(logits.view(labels.shape), labels.float())
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        # filled on the device: a copy from the host would make it wait
        weight = weights and torch.stack([logits.new_full((), w) for w in weights])
        smoothing = config.label_smoothing if self.training else 0.0
        if not labels.is_floating_point():
            labels = labels.long().view(-1)
            return F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
        # shares of a mixture (batch, classes): torch's loss, but a mean by the labels' weights
        weight = torch.ones_like(logits[0]) if weight is None else weight
        smooth = (1 - smoothing) * labels + smoothing / config.num_labels
        return -(smooth * weight * logits.log_softmax(-1)).sum() / (labels * weight).sum()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        sample_seeds: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (batch, channels, height, width), normalised.
            labels: (batch,) class indices, or floats (batch, classes), shares of a mixture (mixup);
                (batch, labels) of 0 and 1; or numbers, by `config.problem_type` (inferred as
                transformers does where it is None).
            sample_seeds, interpolate_pos_encoding, kwargs: as of `SSSDModel.forward`, whose errors
                it has.

        Returns:
            logits (batch, num_labels), and the loss, a scalar, where labels are given.
        """
        images = self.encoder.embeddings.prepare(pixel_values, interpolate_pos_encoding)
        encoded = self.encoder.encode(images, None, sample_seeds, **kwargs)
        logits = self.classifier(encoded.pooler_output)
        loss = None if labels is None else self.classification_loss(logits, labels)
        return ImageClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
