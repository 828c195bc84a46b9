"""One training step against stock ViTMAE's, and its share of the machine's matrix-product rate.

Cases: the same architecture and precision (with stock's own decoder, 512 x 8, and with our light
one), each at its defaults, and the paper's step re-created (models.PublishedMAE). Stock is run as
its users run it: scaled dot-product attention, torch's default AdamW; and, as "stock, tuned", with
the options that ours chooses by itself, the fused AdamW and in bf16 on a CPU plain attention.
`--compile`: the first case of "small" alone, all compiled, into a file of its own.
"""

from functools import partial

import torch
from measuring import interleave, matrix_rate, options, precisions, ratio, timed, write
from models import PublishedMAE, operations, own_model, stock_model, training_step

from sssd_hf import SSSDConfig

# size, decoder, pixels, images: the batch is what takes about a second on a CPU
CPU_CASES = [
    ("small", "mae", 112, 16),
    ("small", "light", 112, 32),
    ("tiny", "light", 112, 64),
    ("small", "mae", 224, 8),
    ("base", "mae", 224, 4),
]
GPU_CASES = [
    ("tiny", "light", 112, 512),
    ("small", "light", 224, 256),
    ("small", "mae", 224, 256),
    ("base", "mae", 112, 256),
    ("base", "mae", 224, 128),
    ("base", "mae", 448, 32),
]


def same_architecture(case: tuple, precision: str, compiled: bool, arguments) -> dict:
    size, decoder, pixels, batch = case
    config = partial(SSSDConfig.from_size, size, decoder, image_size=pixels, num_channels=3)
    plain, device = config(distillation="mae"), arguments.device
    models = {
        "stock": stock_model(plain, device),
        "stock, tuned": stock_model(plain, device),
        "published": PublishedMAE(plain).to(device).train(),
        "own": own_model(plain, device, precision),
        "own with self-distillation": own_model(config(), device, precision),
    }
    if device == "cpu" and precision == "bf16":
        models["stock, tuned"].set_attn_implementation("eager")
    chosen = [name for name in models if name.startswith("own") or "tuned" in name]
    steps = {
        name: training_step(
            model, batch, device, precision, compiled, name in chosen, name.startswith("own")
        )
        for name, model in models.items()
    }
    turns = {name: partial(timed, step, device) for name, step in steps.items()}
    figures = interleave(turns, arguments.repeats, warmup=3 if compiled else 1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    clock = arguments.clock
    rate = matrix_rate(dtype, device, clock)
    return {
        "kind": "same",
        "size": size,
        "decoder": decoder,
        "pixels": pixels,
        "batch": batch,
        "precision": precision,
        "compiled": compiled,
        "seconds": figures,
        "ratio": ratio(figures, "stock", "own", clock),
        "ratio_tuned": ratio(figures, "stock, tuned", "own", clock),
        "ratio_published": ratio(figures, "published", "own", clock),
        "images_per_second": {name: batch / times[clock] for name, times in figures.items()},
        "matrix_rate": rate,
        "mfu": operations(plain, batch) / figures["own"][clock] / rate,
        "mfu_stock": operations(plain, batch) / figures["stock"][clock] / rate,
    }


def defaults(size: str, pixels: int, batch: int, arguments) -> dict:
    """Ours: light decoder, grey, self-distillation, the precision scripts/pretrain.py takes (bf16
    on a GPU, fp32 on a CPU). Stock's: 512 x 8 decoder, RGB, fp32."""
    device = arguments.device
    precision = "bf16" if device == "cuda" else "no"
    ours = SSSDConfig.from_size(size, image_size=pixels, num_channels=1)
    theirs = SSSDConfig.from_size(size, "mae", "mae", image_size=pixels, num_channels=3)
    own = training_step(
        own_model(ours, device, precision), batch, device, precision, False, True, True
    )
    stock = training_step(stock_model(theirs, device), batch, device, "no", False, False)
    turns = {"stock": partial(timed, stock, device), "own": partial(timed, own, device)}
    figures = interleave(turns, arguments.repeats)
    return {
        "kind": "defaults",
        "size": size,
        "pixels": pixels,
        "batch": batch,
        "seconds": figures,
        "ratio": ratio(figures, "stock", "own", arguments.clock),
        "images_per_second": {n: batch / t[arguments.clock] for n, t in figures.items()},
    }


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv, compile=False, cases=0)
    cases = GPU_CASES if arguments.device == "cuda" else CPU_CASES
    if arguments.compile:  # five models a case, of which each takes minutes on a CPU
        cases = [case for case in cases if case[0] == "small"][:1]
    cases = cases[: 1 if arguments.quick else arguments.cases or None]
    found = []
    for precision in precisions(arguments.device):
        for case in cases:
            print("step", *case, precision, "compiled" * arguments.compile)
            found.append(same_architecture(case, precision, arguments.compile, arguments))
            print(f"  {found[-1]['ratio']:.2f} x stock, MFU {found[-1]['mfu']:.0%}")
    if arguments.compile:
        write("step_compiled", arguments, found)
        return
    pixels, batch = (224, 256) if arguments.device == "cuda" else (112, 16)
    found.append(defaults("small", pixels, batch, arguments))
    print(f"at defaults {found[-1]['ratio']:.2f} x stock")
    write("step", arguments, found)


if __name__ == "__main__":
    main()
