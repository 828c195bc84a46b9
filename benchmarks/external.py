"""A training step against the MAE of other packages, each from the package index.

    python benchmarks/external.py [--environments FOLDER]

MONAI's `MaskedAutoEncoderViT` and lightly's `MaskedVisionTransformerTIMM` with `MAEDecoderTIMM`,
small with the 512 x 8 decoder at 112 pixels, grey, as their users run them: torch's default AdamW,
the mean squared error of the hidden patches. Each package is installed into an environment of its
own (lightly needs torchvision, which transformers does not bear), which takes torch from this one,
so that all run by the same torch. Each turn is a process of its own: one step to warm up, then the
median of `--steps`.
"""

import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

from measuring import child, interleave, options, precisions, ratio, write

# name -> what pip installs; without dependencies, as they would bring another torch
PACKAGES = {
    "monai": ["monai", "einops"],
    "lightly": ["lightly", "lightly-utils", "timm", "torchvision"],
}
# precision, images, packages; MONAI's (1.6.1) does not run under autocast: it puts bf16 tokens
# into an fp32 tensor
CASES = (("no", 16, ("monai", "lightly")), ("bf16", 16, ("lightly",)))


def make_environment(root: Path, name: str) -> Path:
    """-> its python; an environment that was made before is taken as it is."""
    folder = root / name
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        shared = sysconfig.get_path("purelib")  # behind its own
        Path(own, "shared.pth").write_text(f"{shared}\n")
        line = [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES[name]]
        subprocess.run(line, check=True)
        done.touch()
    return python


def one_process(python: Path, model: str, precision: str, batch: int, arguments) -> dict:
    """The seconds of a step, as the process tells them, instead of the process's own."""
    script = Path(__file__).with_name("external_step.py")
    line = [str(python), str(script), "--model", model, "--precision", precision]
    line += ["--batch", str(batch), "--steps", str(arguments.steps), "--device", arguments.device]
    told = child(line)["told"]
    return {"wall": told["wall"], "processor": told["processor"], "told": told}


def main(argv: list[str] | None = None) -> None:
    environments = Path(tempfile.gettempdir()) / "sssd_hf_external"
    arguments = options(__doc__, argv, steps=7, environments=environments)
    pythons = {"own": Path(sys.executable)}
    for name in PACKAGES:
        pythons[name] = make_environment(arguments.environments, name)
    found = []
    cases = [case for case in CASES if case[0] in precisions(arguments.device)]
    for precision, batch, packages in cases[: 1 if arguments.quick else None]:
        turns = {
            name: partial(one_process, pythons[name], name, precision, batch, arguments)
            for name in ("own", *packages)
        }
        print("external", precision)
        figures = interleave(turns, arguments.repeats, warmup=0)
        ratios = {name: ratio(figures, name, "own", arguments.clock) for name in packages}
        print("  " + ", ".join(f"{value:.2f} x {name}" for name, value in ratios.items()))
        case = {"size": "small", "decoder": "mae", "pixels": 112, "batch": batch}
        found.append({**case, "precision": precision, "seconds": figures, "ratios": ratios})
    del arguments.environments
    write("external", arguments, found)


if __name__ == "__main__":
    main()
