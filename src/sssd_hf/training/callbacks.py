"""The teacher under `transformers.Trainer`; our own loop calls `update_teacher` itself."""

import torch
from torch import nn
from transformers import TrainerCallback


class SelfDistillationCallback(TrainerCallback):
    """Steps the teacher after each optimiser step of a `Trainer` that trains SSSDForPreTraining.

    The statistics of the step's training forwards are summed over its part batches, and over the
    processes where torch.distributed runs. Without this callback the teacher stays as it started.
    """

    def __init__(self):
        self.statistics: dict[str, torch.Tensor] = {}
        self.hook = None

    @staticmethod
    def _unwrap(model: nn.Module) -> nn.Module:
        """The module that has `update_teacher`, inside the wrappers of DDP, FSDP or compile."""
        for module in model.modules():
            if hasattr(module, "update_teacher"):
                return module
        raise TypeError(f"{type(model).__name__} holds no SSSDForPreTraining.")

    def _collect(self, module: nn.Module, args: tuple, output) -> None:
        if module.training:
            for name, value in output[1].items():
                value = value.detach()
                self.statistics[name] = self.statistics.get(name, 0) + value

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model = self._unwrap(model)
        if args.n_gpu > 1 and model.distillation is not None:
            raise ValueError(
                f"one process with {args.n_gpu} GPUs (DataParallel): the teacher's statistics "
                "would be of several devices. Start one process a GPU (accelerate launch, "
                "torchrun), or show it one (CUDA_VISIBLE_DEVICES=0)."
            )
        self.statistics.clear()
        if model.distillation is not None:
            self.hook = model.distillation.register_forward_hook(self._collect)
        model.update_teacher(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in self.statistics.values():
                torch.distributed.all_reduce(value)
        self._unwrap(model).update_teacher(
            state.global_step, state.max_steps, dict(self.statistics) or None
        )
        self.statistics.clear()

    def on_train_end(self, args, state, control, **kwargs):
        if self.hook is not None:
            self.hook.remove()
            self.hook = None
