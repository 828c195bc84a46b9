"""Peak memory of training steps against stock ViTMAE's, same architecture and batch.

Each in a fresh process. On a CPU: the largest resident set less that after a step of a model of few
weights, which loads the libraries; on a GPU: the most that torch had allocated. Beside it for a CPU
`allocated`, the most that tensors had (the allocator's gaps are not in it), and `state`, 16 bytes a
weight: itself, its gradient and AdamW's two averages. Ours frees a large weight's gradient as soon
as it is used, where it may (`step_in_backward`: one process, no clipping).
"""

import itertools
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
FEW_WEIGHTS = {
    **{"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48},
    **{
        "decoder_hidden_size": 24,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 48,
    },
    **{"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "distillation": "mae"},
}
GPU_CASES = [("small", "mae", 224, 256), ("base", "mae", 224, 128), ("tiny", "light", 112, 1024)]


def one(way: str, size: str, decoder: str, pixels: int, batch: int, precision: str, device: str):
    """Runs in the fresh process; prints MB."""
    import torch
    from models import own_model, stock_model, training_step

    from sssd_hf import SSSDConfig

    def train(config: SSSDConfig, batch: int):
        own = way == "own"
        model = own_model(config, device, precision) if own else stock_model(config, device)
        step = training_step(model, batch, device, precision, False, fused=own, own=own)
        for _ in range(2):
            step()
        return model, step

    train(SSSDConfig(image_size=32, **FEW_WEIGHTS), 2)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model, step = train(
        SSSDConfig.from_size(size, decoder, "mae", image_size=pixels, num_channels=3), batch
    )
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    weights = sum(p.numel() for p in model.parameters())
    told = {"megabytes": peak, "state": 16 * weights / 2**20}
    if device == "cpu":
        told["allocated"] = 12 * weights / 2**20 + allocated(step)
    print(json.dumps(told))


def allocated(step) -> float:
    """The most MB that tensors made in a step have at once, by torch's profiler."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = [e for e in events if e.name() == "[memory]"]
    changes.sort(key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in changes)) / 2**20


def main(argv: list[str] | None = None) -> None:
    arguments = measuring.options(__doc__, argv)
    cases = GPU_CASES if arguments.device == "cuda" else CPU_CASES
    found = []
    for case in cases[: 1 if arguments.quick else None]:
        for precision in measuring.precisions(arguments.device):
            told = {}
            for way in ("stock", "own"):
                call = f"memory.one{(way, *case, precision, arguments.device)!r}"
                line = [sys.executable, "-c", f"import memory; {call}"]
                told[way] = measuring.child(line)["told"]
            stock, own = told["stock"], told["own"]
            share = own["megabytes"] / stock["megabytes"]
            text = f"{share:.2f} of stock's {stock['megabytes']:.0f} MB"
            result = dict(zip(("size", "decoder", "pixels", "batch"), case))
            result |= {"precision": precision, "megabytes": told, "ratio": share}
            if "allocated" in own:
                result["ratio_allocated"] = own["allocated"] / stock["allocated"]
                text += f"; of what tensors have {result['ratio_allocated']:.2f}"
            print("memory", *case, precision, f"{text}; state {own['state']:.0f} MB")
            found.append(result)
    measuring.write("memory", arguments, found)


if __name__ == "__main__":
    main()
