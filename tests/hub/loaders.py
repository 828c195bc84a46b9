"""Every form of export in every loader: the greatest difference from the original.

    python tests/hub/loaders.py --output exports.csv

Environments of other releases are made on demand in --environments (a few minutes and 200 MB, from
the package index); torch is taken from this one.
"""

import argparse
import csv
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_helpers import images, randomize, tiny_config

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import export
from sssd_hf.cli.common import save_checkpoint
from sssd_hf.configuration_sssd import as_pair

# name -> what pip installs into an environment of its own; None: this one
ENVIRONMENTS = {
    "transformers 4.57": ["transformers==4.57.*"],
    "transformers 5.10": ["transformers==5.10.*"],
    "transformers, pinned": None,
    "timm": ["--no-deps", "timm"],
    "onnxruntime": None,
}
LABELS = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "norm_pix_loss": False}
# name -> fields of the config; multiples of the width, for the stock DINOv2
MODELS = {
    "rgb": {"intermediate_size": 64},
    "grey": {"num_channels": 1, "intermediate_size": 64},
    "rgb mean": {"pooling": "mean", "intermediate_size": 64},
    "grey mean": {"pooling": "mean", "num_channels": 1, "intermediate_size": 64},
    "not square": {"image_size": (32, 48)},
    "no qkv bias": {"qkv_bias": False, "layer_norm_eps": 1e-12, "hidden_act": "gelu_new"},
    # large enough to be seen in the logits
    "other eps": {"layer_norm_eps": 0.1},
}
# form -> (the models it can hold, the loaders it is for)
FORMS = {
    "vit": (["rgb", "grey", "not square", "no qkv bias"], ["transformers", "pipeline"]),
    "dinov2": (["rgb", "rgb mean", "grey mean"], ["transformers", "pipeline"]),
    "vit_mae": (["pretrained rgb", "pretrained grey"], ["transformers"]),
    "timm": (list(MODELS), ["timm"]),
    "onnx": (list(MODELS), ["onnxruntime"]),
}


def make_environment(root, name):
    """-> its python; an environment that was made before is taken as it is."""
    packages = ENVIRONMENTS[name]
    if packages is None:
        return Path(sys.executable)
    folder = Path(root) / name.replace(" ", "-")
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        where = {"base": str(folder), "platbase": str(folder)}
        own = Path(sysconfig.get_path("purelib", vars=where))
        # this environment's packages, behind the new one's own
        (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python


def make_models(root):
    """{name: (model, folder)} of random checkpoints."""
    models = {}
    for name, fields in MODELS.items():
        models[name] = SSSDForImageClassification(tiny_config(**LABELS, **fields))
    for name, channels in (("pretrained rgb", 3), ("pretrained grey", 1)):
        models[name] = SSSDForPreTraining(tiny_config(**LABELS, num_channels=channels))
    saved = {}
    for name, model in models.items():
        folder = Path(root) / name.replace(" ", "-")
        save_checkpoint(randomize(model, 0.2).eval(), folder, ([0.4] * 3, [0.3] * 3))
        saved[name] = (model, folder)
    return saved


@torch.no_grad()
def expected(model, inputs, loader):
    """What the original answers."""
    if loader == "pipeline":
        pixels = torch.from_numpy(inputs["pictures"]).permute(0, 3, 1, 2)
        return model((pixels / 255 - 0.4) / 0.3).logits.softmax(-1).numpy()
    pixels = torch.from_numpy(inputs["images"])
    if isinstance(model, SSSDForPreTraining):
        return model(pixels, noise=torch.from_numpy(inputs["noise"])).logits.numpy()
    return model(pixels).logits.numpy()


def make_inputs(config, form):
    """Random images of the model's size, as arrays and as 8-bit pictures."""
    size = as_pair(config.image_size)
    channels = config.num_channels if form == "vit_mae" else 3
    rng = np.random.default_rng(0)
    return {
        "images": images(3, channels, *size).numpy(),
        "noise": rng.random((3, config.num_patches), dtype=np.float32),
        "pictures": rng.integers(0, 256, (3, *size, 3)).astype(np.uint8),
    }


def run_jobs(python, jobs, scratch):
    """All of an environment's jobs in one process there; see load_export.py."""
    listing = Path(scratch) / "jobs.json"
    listing.write_text(json.dumps(jobs))
    child = Path(__file__).with_name("load_export.py")
    done = subprocess.run(
        [str(python), str(child), str(listing)], capture_output=True, text=True, cwd=scratch
    )
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr[-3000:]}")


def export_all(models, root):
    """{(form, name of the model): folder} of every form that each model can take."""
    exported = {}
    for form, (names, _) in FORMS.items():
        for name in names:
            output = Path(root) / f"{form}-{name.replace(' ', '-')}"
            source = str(models[name][1])
            argv = ["--model_name_or_path", source, "--to", form, "--output_dir", str(output)]
            assert export.main(argv) == 0
            exported[form, name] = output
    return exported


def measure(environments, scratch, names=tuple(ENVIRONMENTS)):
    """Lines of the table: form, model, loader, version, greatest difference."""
    scratch, lines = Path(scratch), []
    models = make_models(scratch / "models")
    exported = export_all(models, scratch / "exports")
    for environment in names:
        package, jobs = environment.split(",")[0].split(" ")[0], []
        for number, ((form, name), folder) in enumerate(exported.items()):
            inputs = scratch / f"inputs-{number}.npz"
            np.savez(inputs, **make_inputs(models[name][0].config, form))
            for loader in FORMS[form][1]:
                if package == ("transformers" if loader == "pipeline" else loader):
                    outputs = scratch / f"outputs-{number}-{loader}.npz"
                    job = {"loader": loader, "folder": folder, "inputs": inputs, "outputs": outputs}
                    jobs.append({key: str(value) for key, value in job.items()})
                    lines.append([form, name, loader, outputs, inputs])
        run_jobs(make_environment(environments, environment), jobs, scratch)
        for line in lines:
            if isinstance(line[3], Path):  # of this environment
                form, name, loader, outputs, inputs = line
                with np.load(outputs) as found, np.load(inputs) as given:
                    wanted = expected(models[name][0], given, loader)
                    difference = np.abs(found["result"] - wanted).max()
                    line[3:] = [str(found["version"]), f"{difference:.1e}"]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="exports.csv")
    parser.add_argument("--environments", default=Path(tempfile.gettempdir()) / "sssd_hf_loaders")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lines = measure(arguments.environments, scratch)
    with open(arguments.output, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["form", "model", "loader", "version", "greatest difference"])
        writer.writerows(lines)
    for line in lines:
        print(*line, sep="\t")


if __name__ == "__main__":
    main()
