"""Peak memory of training steps against stock ViTMAE's, same architecture and batch.

Each in a fresh process. On a CPU: the largest resident set less that before the model was built; on
a GPU: the most that torch had allocated.
"""

import json
import resource
import sys

import measuring

# small batches too, where weights and the optimiser's state, the same on both sides, weigh most
CPU_CASES = [
    ("tiny", "light", 112, 64),
    ("tiny", "light", 112, 128),
    ("tiny", "light", 112, 512),
    ("small", "light", 112, 32),
    ("small", "light", 112, 128),
    ("small", "mae", 112, 16),
    ("small", "mae", 112, 64),
    ("small", "mae", 224, 4),
]
GPU_CASES = [("small", "mae", 224, 256), ("base", "mae", 224, 128), ("tiny", "light", 112, 1024)]


def one(way: str, size: str, decoder: str, pixels: int, batch: int, precision: str, device: str):
    """Runs in the fresh process; prints MB."""
    import torch
    from models import own_model, stock_model, training_step

    from sssd_hf import SSSDConfig

    config = SSSDConfig.from_size(size, decoder, "mae", image_size=pixels, num_channels=3)
    if device == "cpu":
        torch.randn(64, 64) @ torch.randn(64, 64)  # what libraries allocate once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = way == "own"
    model = own_model(config, device, precision) if own else stock_model(config, device)
    step = training_step(model, batch, device, precision, False, fused=own)
    for _ in range(2):
        step()
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(json.dumps({"megabytes": peak}))


def main(argv: list[str] | None = None) -> None:
    arguments = measuring.options(__doc__, argv)
    cases = GPU_CASES if arguments.device == "cuda" else CPU_CASES
    found = []
    for case in cases[: 1 if arguments.quick else None]:
        for precision in ("no", "bf16"):
            megabytes = {}
            for way in ("stock", "own"):
                call = f"memory.one{(way, *case, precision, arguments.device)!r}"
                told = measuring.child([sys.executable, "-c", f"import memory; {call}"])["told"]
                megabytes[way] = told["megabytes"]
            share = megabytes["own"] / megabytes["stock"]
            print("memory", *case, precision, f"{share:.2f} of stock's {megabytes['stock']:.0f} MB")
            keys = ("size", "decoder", "pixels", "batch")
            found.append(
                {**dict(zip(keys, case)), "precision": precision, **megabytes, "ratio": share}
            )
    measuring.write("memory", arguments, found)


if __name__ == "__main__":
    main()
