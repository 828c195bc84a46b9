"""One image alone: milliseconds in PyTorch, ours and stock's, and in ONNX, fp32 and int8 (a random
model: what int8 costs in accuracy is told by scripts/export.py, on images)."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from inference import write_classifier
from measuring import REPOSITORY, child, interleave, options, timed, write


def one_image(model, vit, folder: Path, pixels: int, arguments) -> dict:
    device = arguments.device
    model, vit = model.to(device), vit.to(device)
    grey, rgb = (torch.randn(1, c, pixels, pixels, device=device) for c in (1, 3))

    def run(network, image):
        with torch.inference_mode():
            for _ in range(10):
                network(image)

    turns = {
        "own": partial(timed, partial(run, model, grey), device),
        "stock ViT": partial(timed, partial(run, vit, rgb), device),
    }
    if device == "cpu":
        turns |= onnx_turns(folder, pixels)
    figures = interleave(turns, 3 * arguments.repeats, warmup=2)
    return {name: {**t, "milliseconds": 100 * t[arguments.clock]} for name, t in figures.items()}


def onnx_turns(folder: Path, pixels: int) -> dict:
    """ONNX in fp32 and int8, exported by scripts/export.py; nothing without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        print("latency: onnxruntime is not installed, ONNX is left out", file=sys.stderr)
        return {}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    turns = {}
    for kind, more in (("onnx", []), ("onnx-int8", ["--int8", "true"])):
        place = folder / kind
        script = str(REPOSITORY / "scripts/export.py")
        line = [sys.executable, script, "--model_name_or_path", str(folder / "own")]
        try:
            child([*line, "--to", "onnx", *more, "--output_dir", str(place)])
        except RuntimeError as error:
            print(f"latency: {kind} is left out: {str(error)[-300:]}", file=sys.stderr)
            continue
        (file,) = list(place.glob("*.onnx"))[:1]
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        channels = given.shape[1] if isinstance(given.shape[1], int) else 1
        image = torch.randn(1, channels, pixels, pixels).numpy()

        def run(session=session, name=given.name, image=image):
            for _ in range(10):
                session.run(None, {name: image})

        turns[f"own, {kind}"] = partial(timed, run)
    return turns


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    sizes = [("tiny", 112)] if arguments.quick else [("tiny", 112), ("small", 224)]
    found = []
    with tempfile.TemporaryDirectory() as home:
        for size, pixels in sizes:
            folder = Path(home) / size
            model, vit = write_classifier(folder, size, pixels)
            alone = one_image(model, vit, folder, pixels, arguments)
            print("one image", size, {k: f"{v['milliseconds']:.1f} ms" for k, v in alone.items()})
            found.append({"size": size, "pixels": pixels, "one_image": alone})
    write("latency", arguments, found)


if __name__ == "__main__":
    main()
