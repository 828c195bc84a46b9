"""What self-distillation costs over the plain masked autoencoder, by preset: whole steps with the
teacher's update, as the loop takes them."""

from functools import partial

import torch
from measuring import interleave, options, precisions, ratio, timed, write
from models import own_model

from sssd_hf import DISTILLATION_PRESETS, SSSDConfig


def step_of(preset: str, size: str, pixels: int, batch: int, precision: str, device: str):
    config = SSSDConfig.from_size(size, distillation=preset, image_size=pixels, num_channels=1)
    model = own_model(config, device, precision)
    images = torch.randn(batch, 1, pixels, pixels, device=device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            output = model(images)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_teacher(50, 100, output.distillation_statistics)

    return step


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    device, found = arguments.device, []
    cases = [("tiny", 112, 64), ("small", 112, 32)]
    if device == "cuda":
        cases = [("tiny", 112, 512), ("small", 224, 256), ("base", 224, 256)]
    for size, pixels, batch in cases[: 1 if arguments.quick else None]:
        for precision in ("bf16",) if device == "cuda" else precisions(device):
            steps = {
                preset: step_of(preset, size, pixels, batch, precision, device)
                for preset in DISTILLATION_PRESETS
            }
            turns = {preset: partial(timed, step, device) for preset, step in steps.items()}
            figures = interleave(turns, 2 * arguments.repeats)
            extra = {preset: ratio(figures, preset, "mae", arguments.clock) - 1 for preset in steps}
            print("distillation", size, precision, {k: f"{v:+.1%}" for k, v in extra.items()})
            case = {"size": size, "pixels": pixels, "batch": batch, "precision": precision}
            found.append({**case, "seconds": figures, "extra": extra})
    write("distillation", arguments, found)


if __name__ == "__main__":
    main()
