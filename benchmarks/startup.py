"""Seconds until something happens: importing the package (and transformers alone), --help, and the
first training step with images already decoded."""

import sys
import tempfile
from functools import partial
from pathlib import Path

from files import phantom_folder
from measuring import REPOSITORY, child, interleave, options, write


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    python, script = sys.executable, str(REPOSITORY / "scripts/pretrain.py")
    with tempfile.TemporaryDirectory() as home:
        data = phantom_folder(Path(home), 64, 256)

        def first_step() -> dict:
            with tempfile.TemporaryDirectory() as folder:
                line = [python, script, "--data_dir", str(data), "--output_dir", f"{folder}/out"]
                line += ["--split_column", "split", "--train_val_split", "0", "--cache", "disk"]
                line += ["--max_train_steps", "1", "--per_device_train_batch_size", "8"]
                return child(line, HF_HOME=f"{home}/kept")

        turns = {
            "python": partial(child, [python, "-c", "pass"]),
            "import torch": partial(child, [python, "-c", "import torch"]),
            "import transformers' ViTMAE": partial(
                child, [python, "-c", "from transformers import ViTMAEForPreTraining"]
            ),
            "import sssd_hf": partial(child, [python, "-c", "import sssd_hf"]),
            "pretrain.py --help": partial(child, [python, script, "--help"]),
            "pretrain.py, one step, images decoded before": first_step,
        }
        figures = interleave(turns, arguments.repeats)
    for name, seconds in figures.items():
        print(f"{name}: {seconds[arguments.clock]:.2f} s")
    write("startup", arguments, figures)


if __name__ == "__main__":
    main()
