"""Classifying files: scripts/predict.py against the stock pipeline called on the same list."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from files import phantom_folder
from measuring import REPOSITORY, child, interleave, options, ratio, write

from sssd_hf import SSSDConfig, SSSDForImageClassification
from sssd_hf.cli.common import save_checkpoint

PIPELINE = """
import sys, pathlib
from transformers import pipeline
files = sorted(map(str, pathlib.Path(sys.argv[2]).rglob("*.png")))
device = sys.argv[3]
answers = pipeline("image-classification", model=sys.argv[1], device=device)(files{call})
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
        return child([sys.executable, "-c", PIPELINE.format(call=call), *vit])

    turns = {
        "own": partial(child, predict),
        "pipeline": partial(stock, ""),  # on a list of files it takes one at a time
        "pipeline, batches of 64": partial(stock, ", batch_size=64"),
    }
    return interleave(turns, max(1, arguments.repeats // 2), warmup=0)


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv, files=2000, side=384)
    count = 100 if arguments.quick else arguments.files
    sizes = [("tiny", 112)] if arguments.quick else [("tiny", 112), ("small", 224)]
    found = []
    with tempfile.TemporaryDirectory() as home:
        data = phantom_folder(Path(home), count, arguments.side)
        for size, pixels in sizes:
            folder = Path(home) / size
            write_classifier(folder, size, pixels)
            case = {"size": size, "pixels": pixels, "files": count}
            figures = many_files(folder, data, arguments)
            result = ratio(figures, "pipeline", "own", arguments.clock)
            print("inference", size, f"{result:.2f} x the stock pipeline on {count} files")
            found.append({**case, "seconds": figures, "ratio": result})
    write("inference", arguments, found)


if __name__ == "__main__":
    main()
