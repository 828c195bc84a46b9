"""The whole way in processes of their own: push_to_hub.py, then loading as others would."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import TOKEN, Hub
from model_helpers import randomize, tiny_config
from PIL import Image
from transformers import ViTImageProcessor

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli import push_to_hub
from sssd_hf.hub.remote_code import save_with_code

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
SOURCE = Path(__file__).parents[2] / "src"

WITHOUT_PACKAGE = """
import sys

class Block:  # an installed package is as good as absent
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sssd_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""
WITH_PACKAGE = "import sssd_hf\n"
PULL = """
import json, sys, torch
from transformers import AutoModelForImageClassification, AutoModelForPreTraining, pipeline
torch.set_num_threads(1)
repo, folder, how, revision = sys.argv[1:]
more = {"trust_remote_code": True} if "remote" in how else {}
pixels = torch.load(f"{folder}/pixels.pt", weights_only=True)
noise = torch.zeros(1, 16)
results = {}
if "root" in how:
    model = AutoModelForImageClassification.from_pretrained(repo, revision=revision, **more)
    results["logits"] = model(pixels).logits
    classify = pipeline("image-classification", model=repo, revision=revision, device="cpu", **more)
    print("SCORES" + json.dumps(classify(f"{folder}/image.png")))
    print("CLASS " + type(model).__module__ + " " + type(model).__name__)
if "pretraining" in how:
    model = AutoModelForPreTraining.from_pretrained(
        repo, subfolder="pretraining", revision=revision, **more)
    results["reconstruction"] = model(pixels, noise=noise).logits
    print("CLASS " + type(model).__module__ + " " + type(model).__name__)
torch.save({k: v.detach() for k, v in results.items()}, f"{folder}/results.pt")
"""


@pytest.fixture
def hub():
    with Hub() as server:
        yield server


@pytest.fixture
def folders(tmp_path):
    """An exported plain ViT, the fine-tuned SSSD model that it is, and a pretraining checkpoint."""
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = randomize(SSSDForImageClassification(tiny_config(num_channels=3, **labels))).eval()
    pretraining = randomize(SSSDForPreTraining(tiny_config(num_channels=3))).eval()
    model.to_vit().save_pretrained(tmp_path / "vit")
    save_with_code(model, tmp_path / "fine")
    save_with_code(pretraining, tmp_path / "pre")
    for name in ("vit", "fine", "pre"):
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    for name in ("reconstructions.png", "splits.json", "checkpoints/step-00000001/state.json"):
        path = tmp_path / "pre" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(pixels, tmp_path / "pixels.pt")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = {
        "logits": model(pixels).logits,
        "reconstruction": pretraining(pixels, noise=torch.zeros(1, 16)).logits,
    }
    return tmp_path, expected


def environment(tmp_path, url, token=TOKEN):
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return {
        **kept, "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {}),
    }  # fmt: skip


def run_push(tmp_path, url, *options, token=TOKEN):
    """push_to_hub.py in a process of its own, whose whole output never has the token."""
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options)],
        env={**environment(tmp_path, url, token), "PYTHONPATH": str(SOURCE)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert TOKEN not in process.stdout + process.stderr
    return process


def pull(tmp_path, url, repo, how, package, revision="main", token=TOKEN):
    """Load in a fresh process with an empty cache -> (process, tensors)."""
    results = tmp_path / "results.pt"
    results.unlink(missing_ok=True)
    home = tmp_path / f"home-{len(list(tmp_path.glob('home-*')))}"
    process = subprocess.run(
        [sys.executable, "-c", (WITH_PACKAGE if package else WITHOUT_PACKAGE) + PULL,
         repo, str(tmp_path), how, revision],
        env={**environment(tmp_path, url, token), "HF_HOME": str(home),
             "PYTHONPATH": str(SOURCE) if package else ""},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return process, torch.load(results, weights_only=True) if results.exists() else {}


def hashes(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_one_repository_of_both_forms(hub, folders):
    """The plain ViT at the root needs neither package nor remote code; the pretraining checkpoint
    in its folder needs the one or the other. Pushed through a failing server."""
    tmp_path, expected = folders
    hub.fail("PUT /storage", "cut", 2)
    hub.fail("POST .*/commit/", 500, 1)
    hub.fail("POST .*/preupload", 429, 1, {"Retry-After": "1"})
    options = ("--model_dir", "vit", "--pretraining_dir", "pre", "--hub_model_id", "both",
               "--hub_tag", "v1")  # fmt: skip
    process = run_push(tmp_path, hub.url, *options)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == f"{hub.url}/tester/both"
    assert "not published: pretraining/reconstructions.png: shows images" in process.stderr
    assert "not published: pretraining/checkpoints/: the state of the optimiser" in process.stderr
    repository = hub.repositories["tester/both"]
    assert repository.messages == ["initial commit", "Publish the model"]
    assert repository.private
    assert not {"pretraining/splits.json", "pretraining/modeling_sssd.py"} & set(
        hub.files("tester/both")
    )

    process, found = pull(tmp_path, hub.url, "tester/both", "root", package=False)
    assert process.returncode == 0, process.stderr
    assert "ViTForImageClassification" in process.stdout
    assert torch.equal(found["logits"], expected["logits"])
    scores = json.loads(process.stdout.split("SCORES")[1].split("\n")[0])
    assert {entry["label"] for entry in scores} == {"no", "yes"}

    process, found = pull(tmp_path, hub.url, "tester/both", "pretraining remote", package=False)
    assert process.returncode == 0, process.stderr
    assert "transformers_modules" in process.stdout
    assert torch.equal(found["reconstruction"], expected["reconstruction"])

    process, found = pull(tmp_path, hub.url, "tester/both", "root pretraining", package=True)
    assert process.returncode == 0, process.stderr
    assert "sssd_hf.modeling_sssd SSSDForPreTraining" in process.stdout
    assert torch.equal(found["reconstruction"], expected["reconstruction"])

    process, _ = pull(tmp_path, hub.url, "tester/both", "root", False, token=None)
    assert process.returncode != 0
    assert "private" in process.stderr

    # again, and nothing is uploaded
    hub.requests.clear()
    process = run_push(tmp_path, hub.url, *options)
    assert process.returncode == 0, process.stderr
    assert "nothing to upload" in process.stderr
    assert hub.count("PUT|preupload|/commit/") == 0


def test_an_sssd_model_on_a_branch_loads_with_and_without_the_package(hub, folders):
    tmp_path, expected = folders
    process = run_push(
        tmp_path, hub.url, "--model_dir", "fine", "--form", "sssd", "--hub_model_id", "tester/fine",
        "--hub_revision", "trial", "--hub_private_repo", "false",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "config.json" not in hub.files("tester/fine")  # of main
    for how, package in (("root remote", False), ("root", True)):
        process, found = pull(
            tmp_path, hub.url, "tester/fine", how, package, revision="trial", token=None
        )
        assert process.returncode == 0, process.stderr
        assert torch.equal(found["logits"], expected["logits"])
    process, _ = pull(tmp_path, hub.url, "tester/fine", "root", True, revision="no-such")
    assert process.returncode != 0
    assert "no-such" in process.stderr


def test_a_missing_token_is_a_clear_error(hub, folders):
    tmp_path, _ = folders
    options = ("--model_dir", "vit", "--hub_model_id", "tester/secret")
    process = run_push(tmp_path, hub.url, *options, token=None)
    assert process.returncode == 1
    assert "error: There is no token for the Hub. Log in with `hf auth login`" in process.stderr
    assert "Traceback" not in process.stderr
    assert not hub.repositories


def test_without_a_network_all_stays_and_the_command_is_told(folders):
    tmp_path, _ = folders
    with Hub() as gone:
        url = gone.url
    options = (
        "--model_dir",
        "fine",
        "--form",
        "sssd",
        "--hub_model_id",
        "tester/fine",
        "--license",
        "mit",
    )
    push_to_hub.main(["--model_dir", str(tmp_path / "fine"), *options[2:], "--card_only", "true"])
    before = hashes(tmp_path / "fine")
    process = run_push(tmp_path, url, *options)
    assert process.returncode == 1
    assert "could not be reached" in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.rstrip().endswith(
        "python scripts/push_to_hub.py --model_dir fine --form sssd --hub_model_id tester/fine "
        "--license mit"
    )
    assert hashes(tmp_path / "fine") == before
