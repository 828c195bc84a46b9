"""Pretraining on files, as a user starts it, against the way of the example scripts.

Whole processes from start to end, so with imports and decoding: scripts/pretrain.py, which also
writes its checkpoint, and benchmarks/example_way.py, which writes none. Once with the same
architecture and precision, once each at its defaults (there: ViTMAEConfig(), base at 224 pixels in
RGB and fp32). An empty HF_HOME for each run: nothing is decoded in advance.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from files import phantom_folder
from measuring import REPOSITORY, child, interleave, options, precisions, ratio, write

from sssd_hf import SSSDConfig

PLAIN = ["--min_crop_scale", "0.2", "--distillation", "mae"]


def own(data: Path, batch: int, epochs: int, more: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(REPOSITORY / "scripts/pretrain.py"), "--data_dir", str(data)]
        line += ["--output_dir", f"{folder}/out", "--num_train_epochs", str(epochs)]
        line += ["--split_column", "split", "--train_val_split", "0", "--eval_epochs", "0"]
        line += ["--per_device_train_batch_size", str(batch), *more]
        found = child(line, HF_HOME=f"{folder}/home")
        results = json.loads(Path(f"{folder}/out/all_results.json").read_text())
        rate = results["train_images_per_second"]
    return {**found, "told": {"images_per_second": rate}}


def example(data: Path, batch: int, epochs: int, device: str, config: str, more: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(REPOSITORY / "benchmarks/example_way.py"), "--data_dir"]
        line += [str(data), "--batch", str(batch), "--epochs", str(epochs), "--device", device]
        return child([*line, "--config", config, *more], HF_HOME=f"{folder}/home")


def compare(title: str, data: Path, count: int, batch: int, epochs: int, arguments, **ways) -> dict:
    turns = {
        "own": partial(own, data, batch, epochs, ways["own"]),
        "example": partial(
            example, data, batch, epochs, arguments.device, ways["config"], ways["example"]
        ),
    }
    print(title, f"{count} images, {epochs} epochs")
    # a hundred epochs take minutes: what start and chance weigh in them needs no second turn
    figures = interleave(turns, 1 if epochs >= 100 else arguments.repeats, warmup=0)
    result = ratio(figures, "example", "own", arguments.clock)
    print(f"  {result:.2f} x the example scripts' way")
    case = {"kind": title, "images": count, "epochs": epochs, "batch": batch}
    return {**case, "seconds": figures, "ratio": result}


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv, side=384, most_epochs=100)
    cuda = arguments.device == "cuda"
    size, pixels, batch = ("base", 224, 128) if cuda else ("tiny", 112, 64)
    count = 2048 if cuda else 512
    config = SSSDConfig.from_size(size, "light", "mae", image_size=pixels, num_channels=1)
    fields = {k: v for k, v in config.to_dict().items() if k.split("_")[0] not in ("transformers",)}
    workers = ["--workers", "8" if cuda else str(max(1, arguments.threads))]
    found = []
    with tempfile.TemporaryDirectory() as home:
        data = phantom_folder(Path(home), count, arguments.side)
        own_options = ["--model_size", size, "--image_size", str(pixels), *PLAIN]
        epochs = [n for n in ((10,) if cuda else (1, 10, 100)) if n <= arguments.most_epochs]
        for number in epochs[:1] if arguments.quick else epochs:
            for precision in ("bf16",) if cuda else precisions("cpu"):
                same = {
                    "own": [*own_options, "--mixed_precision", precision],
                    "config": json.dumps(fields),
                    "example": [*workers, "--precision", precision],
                }
                title = f"same, {size} at {pixels}, {precision}"
                found.append(compare(title, data, count, batch, number, arguments, **same))
        few = phantom_folder(Path(home), count if cuda else 64, arguments.side)
        few_count = count if cuda else 64
        ways = {"own": [], "config": "", "example": workers}
        batch = 64 if cuda else 16
        found.append(compare("defaults", few, few_count, batch, 1, arguments, **ways))
    write("end_to_end", arguments, found)


if __name__ == "__main__":
    main()
