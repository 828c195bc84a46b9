"""Classifying files: scripts/predict.py against the stock pipeline called on the same list, and one
image alone (PyTorch, and ONNX in fp32 and int8 where scripts/export.py exists)."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from files import phantom_folder
from measuring import REPOSITORY, child, interleave, options, ratio, timed, write

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli.common import save_checkpoint

PIPELINE = """
import sys, pathlib
from transformers import pipeline
files = sorted(map(str, pathlib.Path(sys.argv[2]).rglob("*.png")))
device = sys.argv[3]
answers = pipeline("image-classification", model=sys.argv[1], device=device{more})(files{call})
assert len(answers) == len(files)
"""


def write_classifier(folder: Path, size: str, pixels: int):
    """An SSSD classifier, and the plain ViT it is (which the stock pipeline loads by itself)."""
    torch.manual_seed(0)
    model = SSSDForImageClassification(
        SSSDConfig.from_size(size, image_size=pixels, num_channels=1, num_labels=2)
    ).eval()
    save_checkpoint(model, folder / "own", ([0.5] * 3, [0.5] * 3))
    rgb = SSSDForImageClassification(
        SSSDConfig.from_size(size, image_size=pixels, num_channels=3, num_labels=2)
    ).eval()
    rgb.to_vit().save_pretrained(folder / "vit")
    name = "preprocessor_config.json"
    (folder / "vit" / name).write_text((folder / "own" / name).read_text())
    return model, rgb.to_vit().eval()


def many_files(folder: Path, data: Path, arguments) -> dict:
    predict = [sys.executable, str(REPOSITORY / "scripts/predict.py"), "--images", str(data)]
    predict += ["--model_name_or_path", str(folder / "own")]
    predict += ["--output_file", str(folder / "predictions.csv")]
    vit = [str(folder / "vit"), str(data), arguments.device]

    def stock(call: str) -> dict:
        return child([sys.executable, "-c", PIPELINE.format(more="", call=call), *vit])

    turns = {
        "own": partial(child, predict),
        "pipeline": partial(stock, ""),  # on a list of files it takes one at a time
        "pipeline, batches of 64": partial(stock, ", batch_size=64"),
    }
    return interleave(turns, max(1, arguments.repeats // 2), warmup=0)


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
    """ONNX in fp32 and int8, exported by scripts/export.py; nothing where that or onnxruntime is
    missing."""
    script = REPOSITORY / "scripts/export.py"
    if not script.exists():
        print("inference: no scripts/export.py, ONNX is left out", file=sys.stderr)
        return {}
    try:
        import onnxruntime
    except ImportError:
        print("inference: onnxruntime is not installed, ONNX is left out", file=sys.stderr)
        return {}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    turns = {}
    for kind, more in (("onnx", []), ("onnx-int8", ["--int8", "true"])):
        place = folder / kind
        line = [sys.executable, str(script), "--model_name_or_path", str(folder / "own")]
        try:
            child([*line, "--to", "onnx", *more, "--output_dir", str(place)])
        except RuntimeError as error:
            print(f"inference: {kind} is left out: {str(error)[-300:]}", file=sys.stderr)
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
    arguments = options(__doc__, argv, files=2000, side=384)
    count = 100 if arguments.quick else arguments.files
    sizes = [("tiny", 112)] if arguments.quick else [("tiny", 112), ("small", 224)]
    found = []
    with tempfile.TemporaryDirectory() as home:
        data = phantom_folder(Path(home), count, arguments.side)
        for size, pixels in sizes:
            folder = Path(home) / size
            model, vit = write_classifier(folder, size, pixels)
            case = {"size": size, "pixels": pixels, "files": count}
            alone = one_image(model, vit, folder, pixels, arguments)
            print("one image", size, {k: f"{v['milliseconds']:.1f} ms" for k, v in alone.items()})
            figures = many_files(folder, data, arguments)
            result = ratio(figures, "pipeline", "own", arguments.clock)
            print("inference", size, f"{result:.2f} x the stock pipeline on {count} files")
            found.append({**case, "seconds": figures, "ratio": result, "one_image": alone})
    write("inference", arguments, found)


if __name__ == "__main__":
    main()
