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
from torch import Tensor, nn

from .configuration_sssd import SSSDConfig


class DINOHead(nn.Module):
    """DINO's projection head (arXiv 2104.14294): a 3-layer MLP to a bottleneck, L2-normalised,
    then cosine similarities with `num_prototypes` unit vectors."""

    def __init__(self, config: SSSDConfig, input_size: int):
        super().__init__()
        hidden, narrow = config.distillation_head_hidden_size, config.distillation_bottleneck_size
        first, second = nn.Linear(input_size, hidden), nn.Linear(hidden, hidden)
        last = nn.Linear(hidden, narrow)
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.prototypes = nn.Parameter(torch.empty(config.distillation_num_prototypes, narrow))

    def forward(self, features: Tensor) -> Tensor:
        features = F.normalize(self.mlp(features), dim=-1)
        return F.linear(features, F.normalize(self.prototypes, dim=-1))


class SelfDistillation(nn.Module):
    """`loss, statistics = distillation(encoded, decoded, ids_keep)`.

    The teacher's state, saved with the model, are the buffers `teacher_*` and the head
    `teacher_ema`. They are fp32 whatever the model's dtype: an EMA with momentum 0.996 in bf16
    never moves.
    """

    def __init__(self, config: SSSDConfig):
        super().__init__()
        self.config = config
        width, out = config.hidden_size, config.decoder_hidden_size
        dino, kind = config.distillation_head == "dino", config.distillation_teacher_head
        self.student_projection = nn.Identity()
        self.joint_head = self.teacher_ema = None
        if config.distillation_head == "linear":
            self.student_head = nn.Linear(width, out)
        elif config.distillation_head == "mlp":
            last = nn.Linear(width, out)
            self.student_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), last)
        elif kind == "joint":
            self.student_head = DINOHead(config, width)
            self.joint_head = DINOHead(config, out)
        else:  # one head, or its average, for both sides: the student comes to the teacher's width
            self.student_projection = nn.Linear(width, out)
            self.student_head = DINOHead(config, out)
        if dino and kind == "ema":
            self.teacher_ema = DINOHead(config, out).float().requires_grad_(False)

        # (shape, start): full weight until a loop counts steps; standardising as the identity
        buffers = {"step": ((), 0.0), "weight": ((), float(config.distillation_weight))}
        if dino:
            buffers["center"] = ((config.distillation_num_prototypes,), 0.0)
        if config.distillation_target.startswith("standardize"):
            per_position = config.distillation_target == "standardize_per_position"
            shape = (config.num_patches + 1, out) if per_position else (out,)
            buffers |= {"mean": (shape, 0.0), "variance": (shape, 1.0)}
        self.starts = {f"teacher_{name}": start for name, (_, start) in buffers.items()}
        for name, (shape, start) in buffers.items():
            self.register_buffer(f"teacher_{name}", torch.full(shape, start, dtype=torch.float32))

    def _apply(self, fn, recurse: bool = True):
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        for name, child in self.named_children():
            child._apply(keep_dtype if name == "teacher_ema" else fn)
        self._buffers = {name: keep_dtype(tensor) for name, tensor in self._buffers.items()}
        return self

    def _normalize(self, target: Tensor, position: Tensor) -> Tensor:
        """The teacher's features (batch, tokens, width) as `distillation_target` says."""
        kind, dtype = self.config.distillation_target, target.dtype
        if kind == "layer_norm":
            target = F.layer_norm(target, target.shape[-1:], eps=self.config.layer_norm_eps)
        elif kind != "raw":
            mean, variance = self.teacher_mean, self.teacher_variance
            if kind == "standardize_per_position":
                mean, variance = mean[position], variance[position]  # (batch, tokens, width)
            target = (target.float() - mean) * (variance + 1e-6).rsqrt()
        return target.to(dtype)

    def _teach(self, features: Tensor) -> Tensor:
        if self.config.distillation_head != "dino":
            return features
        head = self.teacher_ema or self.joint_head or self.student_head
        return head(features.to(head.prototypes.dtype))

    def forward(self, encoded: Tensor, decoded: Tensor, ids_keep: Tensor) -> tuple[Tensor, dict]:
        """
        Args:
            encoded: (batch, 1 + visible, width), CLS first, after the encoder's norm.
            decoded: (batch, 1 + patches, decoder width).
            ids_keep: (batch, visible), which patch each visible token is.

        Returns:
            The loss (a scalar, fp32), and sums over the batch's vectors, from which `update` steps
            the teacher once they are summed over processes and part batches.
        """
        config = self.config
        if config.distillation_stop_gradient:
            decoded = decoded.detach()
        student, position = encoded, F.pad(ids_keep + 1, (1, 0))  # CLS stands at 0
        if config.distillation_tokens != "visible_cls":
            student, position = student[:, 1:], position[:, 1:]
        if config.distillation_tokens == "all":
            position = torch.arange(1, decoded.shape[1], device=position.device)[None]
        index = position[..., None].expand(decoded.shape[0], -1, decoded.shape[-1])
        teacher = decoded.gather(1, index)  # (batch, tokens, decoder width)
        if config.distillation_pooling == "features":
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)

        target = self._teach(self._normalize(teacher, position)).float()
        prediction = self.student_head(self.student_projection(student)).float()
        if config.distillation_pooling == "logits":
            prediction, target = prediction.mean(1, keepdim=True), target.mean(1, keepdim=True)
        if config.distillation_stop_gradient:
            target = target.detach()  # the shared head's side too
        statistics = self._statistics(teacher.detach().float(), target.detach(), position)
        return self._distance(prediction, target), statistics

    def _probabilities(self, logits: Tensor) -> Tensor:
        centered = logits - self.teacher_center
        return F.softmax(centered / self.config.distillation_teacher_temperature, dim=-1)

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        kind = self.config.distillation_distance
        if kind in ("smooth_l1", "mse"):
            return (F.smooth_l1_loss if kind == "smooth_l1" else F.mse_loss)(prediction, target)
        if kind == "cosine":
            return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
        student = F.log_softmax(prediction / self.config.distillation_student_temperature, dim=-1)
        return -(self._probabilities(target) * student).sum(-1).mean()

    @torch.no_grad()
    def _statistics(self, features: Tensor, target: Tensor, position: Tensor) -> dict[str, Tensor]:
        features, target = features.float(), target.float()
        image = target.mean(1)  # one vector an image: a collapse shows in its spread over images
        statistics = {"images": image.new_full((), image.shape[0]), "image_sum": image.sum(0)}
        statistics["image_square_sum"] = image.square().sum(0)
        if self.config.distillation_target.startswith("standardize"):
            values = (torch.ones_like(features[..., :1]), features, features.square())
            if self.config.distillation_target == "standardize":
                sums = [value.sum((0, 1)) for value in values]
            else:  # by position: one-hot products, no atomic additions
                places = torch.arange(self.teacher_mean.shape[0], device=position.device)
                chosen = (places[:, None, None] == position).float()  # (places, batch or 1, tokens)
                # in fp32 under autocast too: a variance is what is left of two large numbers
                with torch.autocast(features.device.type, enabled=False):
                    sums = [torch.einsum("pbt,btd->pd", chosen, value) for value in values]
            statistics |= dict(zip(("count", "sum", "square_sum"), sums))
        if self.config.distillation_head == "dino":
            statistics["probability_sum"] = self._probabilities(target).mean(1).sum(0)
        return statistics

    def scheduled_weight(self, step: int, total_steps: int) -> float:
        """The weight w(t) after `step` of `total_steps` optimiser steps."""
        warmup = self.config.distillation_warmup_ratio * total_steps
        whole = self.config.distillation_schedule == "constant" or step >= warmup
        return self.config.distillation_weight * (1.0 if whole else step / warmup)

    @torch.no_grad()
    def update(self, step: int, total_steps: int, statistics: dict | None = None) -> None:
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
            count = statistics["count"].clamp(min=1)
            mean = statistics["sum"] / count
            variance = (statistics["square_sum"] / count - mean.square()).clamp(min=0)
            for old, new in ((self.teacher_mean, mean), (self.teacher_variance, variance)):
                old.copy_(torch.where(statistics["count"] > 0, keep * old + (1 - keep) * new, old))
        if config.distillation_head == "dino":
            center = statistics["probability_sum"] / statistics["images"]
            self.teacher_center.mul_(keep).add_(center, alpha=1 - keep)
        if self.teacher_ema is not None:
            slow = config.distillation_teacher_momentum
            for old, new in zip(self.teacher_ema.parameters(), self.student_head.parameters()):
                old.mul_(slow).add_(new.float(), alpha=1 - slow)

    @staticmethod
    def target_std(statistics: dict[str, Tensor]) -> Tensor:
        """How much the teacher's output (one vector an image) spreads over images: the root of the
        variance, averaged over channels. Near zero means a collapse; NaN for one image."""
        count = statistics["images"].where(statistics["images"] > 1, torch.nan)
        mean, square = (statistics[f"image_{kind}"] / count for kind in ("sum", "square_sum"))
        return (square - mean.square()).clamp(min=0).mean().sqrt()
