"""The self-distillation loss: the encoder's tokens learn to predict the decoder's.

    L    = L_rec + w(t) L_sd                  (or (1 - w) L_rec + w L_sd)
    L_sd = mean over tokens of distance(student(z), stop_gradient(teacher(h)))

z: the encoder's output at the visible patches; h: the decoder's output, which has attended to all
patches. After SSSD-COVID (Tan et al. 2024, doi 10.1016/j.cmpb.2023.107876) and SD-MAE (Luo et al.
2022, arXiv 2203.16983). The teacher's state (weight, centre, running statistics, EMA head) changes
in `update` alone, never in `forward`: part batches and processes would each change it.

This file travels with a checkpoint as remote code: it imports torch and transformers only.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_sssd import SSSDConfig


class DINOHead(nn.Module):
    """DINO's projection head (arXiv 2104.14294): a 3-layer MLP to a bottleneck, L2-normalised,
    then cosine similarities with `num_prototypes` unit vectors."""

    def __init__(self, config: SSSDConfig, input_size: int):
        super().__init__()
        hidden, bottleneck = (
            config.distillation_head_hidden_size,
            config.distillation_bottleneck_size,
        )
        self.mlp = nn.Sequential(
            nn.Linear(input_size, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(config.distillation_num_prototypes, bottleneck))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = F.normalize(self.mlp(features), dim=-1)
        return F.linear(features, F.normalize(self.prototypes, dim=-1))


class SelfDistillation(nn.Module):
    """`loss, statistics = distillation(encoder_output, decoder_output, ids_keep)`.

    The teacher's state, saved with the model, are the buffers `teacher_*` and the head
    `teacher_ema`. They are fp32 whatever the model's dtype: an EMA with momentum 0.996 in bf16
    never moves.
    """

    def __init__(self, config: SSSDConfig):
        super().__init__()
        self.config = config
        width, target_width = config.hidden_size, config.decoder_hidden_size
        dino, kind = config.distillation_head == "dino", config.distillation_teacher_head
        self.student_projection = nn.Identity()
        self.joint_head = self.teacher_ema = None
        if config.distillation_head == "linear":
            self.student_head = nn.Linear(width, target_width)
        elif config.distillation_head == "mlp":
            self.student_head = nn.Sequential(
                nn.Linear(width, width), nn.GELU(), nn.Linear(width, target_width)
            )
        elif kind == "joint":
            self.student_head = DINOHead(config, width)
            self.joint_head = DINOHead(config, target_width)
        else:  # one head, or its average, for both sides: the student comes to the teacher's width
            self.student_projection = nn.Linear(width, target_width)
            self.student_head = DINOHead(config, target_width)
        if dino and kind == "ema":
            self.teacher_ema = DINOHead(config, target_width).float().requires_grad_(False)

        def buffer(name: str, *shape: int) -> None:
            self.register_buffer(f"teacher_{name}", torch.empty(shape, dtype=torch.float32))

        buffer("step")  # exact up to 2 ** 24
        buffer("weight")
        if dino:
            buffer("center", config.distillation_num_prototypes)
        if config.distillation_target.startswith("standardize"):
            per_position = config.distillation_target == "standardize_per_position"
            shape = (config.num_patches + 1,) if per_position else ()
            buffer("mean", *shape, target_width)
            buffer("variance", *shape, target_width)

    def _apply(self, fn, recurse: bool = True):
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        for name, child in self.named_children():
            child._apply(keep_dtype if name == "teacher_ema" else fn)
        self._buffers = {name: keep_dtype(tensor) for name, tensor in self._buffers.items()}
        return self

    def _student(self, features: torch.Tensor) -> torch.Tensor:
        return self.student_head(self.student_projection(features))

    def _teach(self, features: torch.Tensor) -> torch.Tensor:
        if self.config.distillation_head != "dino":
            return features
        if self.teacher_ema is not None:
            return self.teacher_ema(features.float())
        return (self.joint_head or self.student_head)(features)

    def _normalize_target(self, target: torch.Tensor, position: torch.Tensor | None):
        kind = self.config.distillation_target
        if kind == "layer_norm":
            return F.layer_norm(target.float(), target.shape[-1:], eps=self.config.layer_norm_eps)
        if kind == "raw":
            return target.float()
        mean, variance = self.teacher_mean, self.teacher_variance
        if kind == "standardize_per_position":
            mean, variance = mean[position], variance[position]  # (batch, tokens, width)
        return (target.float() - mean) * (variance + 1e-6).rsqrt()

    def forward(
        self, encoder_output: torch.Tensor, decoder_output: torch.Tensor, ids_keep: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            encoder_output: (batch, 1 + visible, width), CLS first, after the encoder's norm.
            decoder_output: (batch, 1 + patches, decoder width).
            ids_keep: (batch, visible), which patch each visible token is.

        Returns:
            The loss (a scalar, fp32), and sums over the batch's vectors, from which `update` steps
            the teacher once they are summed over processes and part batches.
        """
        config = self.config
        if config.distillation_stop_gradient:
            decoder_output = decoder_output.detach()
        if config.distillation_tokens == "visible_cls":
            student = encoder_output
            position = F.pad(ids_keep + 1, (1, 0))  # the CLS token stands at 0
        else:
            student = encoder_output[:, 1:]
            position = ids_keep + 1
        if config.distillation_tokens == "all":
            teacher = decoder_output[:, 1:]
        else:
            index = position[..., None].expand(-1, -1, decoder_output.shape[-1])
            teacher = decoder_output.gather(1, index)  # (batch, tokens, decoder width)
        if config.distillation_pooling == "features":
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)

        target = self._teach(self._normalize_target(teacher, position).to(teacher.dtype)).float()
        prediction = self._student(student).float()
        if config.distillation_pooling == "logits":
            prediction, target = prediction.mean(1, keepdim=True), target.mean(1, keepdim=True)
        if config.distillation_stop_gradient:
            target = target.detach()  # the shared head's side too

        with torch.no_grad():
            statistics = self._statistics(teacher.detach().float(), target.detach(), position)
        if config.distillation_distance == "cross_entropy":
            probabilities = self._probabilities(target)
            log_student = F.log_softmax(prediction / config.distillation_student_temperature, -1)
            return -(probabilities * log_student).sum(-1).mean(), statistics
        return self._distance(prediction, target), statistics

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        centered = logits - self.teacher_center
        return F.softmax(centered / self.config.distillation_teacher_temperature, dim=-1)

    def _distance(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        kind = self.config.distillation_distance
        if kind == "smooth_l1":
            return F.smooth_l1_loss(prediction, target)
        if kind == "mse":
            return F.mse_loss(prediction, target)
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()

    def _statistics(
        self, features: torch.Tensor, target: torch.Tensor, position: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        image = target.mean(1)  # one vector an image: a collapse shows in its spread over images
        statistics = {
            "images": torch.full((), len(image), dtype=torch.float32, device=image.device),
            "image_sum": image.sum(0),
            "image_square_sum": image.square().sum(0),
        }
        kind = self.config.distillation_target
        if kind == "standardize":
            vectors = features.flatten(0, 1)
            statistics["count"] = torch.full_like(statistics["images"], len(vectors))
        elif kind == "standardize_per_position":
            # position by token, so that the sums are two products and no atomic additions
            places = torch.arange(self.teacher_mean.shape[0], device=position.device)
            chosen = (places[:, None, None] == position).float()  # (1 + patches, batch, tokens)
            statistics["count"] = chosen.sum((1, 2))[:, None]
            statistics["sum"] = torch.einsum("pbt,btd->pd", chosen, features)
            statistics["square_sum"] = torch.einsum("pbt,btd->pd", chosen, features.square())
        if kind == "standardize":
            statistics["sum"], statistics["square_sum"] = vectors.sum(0), vectors.square().sum(0)
        if self.config.distillation_head == "dino":
            statistics["probability_sum"] = self._probabilities(target).mean(1).sum(0)
        return statistics

    def scheduled_weight(self, step: int, total_steps: int) -> float:
        """The weight w(t) after `step` of `total_steps` optimiser steps."""
        weight = float(self.config.distillation_weight)
        warmup = self.config.distillation_warmup_ratio * total_steps
        if self.config.distillation_schedule == "constant" or step >= warmup:
            return weight
        return weight * step / warmup

    @torch.no_grad()
    def update(
        self, step: int, total_steps: int, statistics: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Step the teacher after optimiser step number `step` (0: before the first).

        Args:
            statistics: those of `forward`, summed over the step's processes and part batches.
        """
        config = self.config
        self.teacher_step.fill_(step)
        self.teacher_weight.fill_(self.scheduled_weight(step, total_steps))
        if statistics is None:
            return
        keep = config.distillation_center_momentum
        if config.distillation_target.startswith("standardize"):
            seen = statistics["count"] > 0
            count = statistics["count"].clamp(min=1)
            mean = statistics["sum"] / count
            variance = (statistics["square_sum"] / count - mean.square()).clamp(min=0)
            for old, new in ((self.teacher_mean, mean), (self.teacher_variance, variance)):
                old.copy_(torch.where(seen, keep * old + (1 - keep) * new, old))
        if config.distillation_head == "dino":
            center = statistics["probability_sum"] / statistics["images"]
            self.teacher_center.mul_(keep).add_(center, alpha=1 - keep)
        if self.teacher_ema is not None:
            slow = config.distillation_teacher_momentum
            for old, new in zip(self.teacher_ema.parameters(), self.student_head.parameters()):
                old.mul_(slow).add_(new.float(), alpha=1 - slow)

    @staticmethod
    def target_std(statistics: dict[str, torch.Tensor]) -> torch.Tensor:
        """How much the teacher's output (one vector an image) spreads over images: the root of the
        variance, averaged over channels. Near zero means a collapse."""
        mean = statistics["image_sum"] / statistics["images"]
        square = statistics["image_square_sum"] / statistics["images"]
        return (square - mean.square()).clamp(min=0).mean().sqrt()
