"""A tiny model, files to drop, and the demo in a process of its own."""

import contextlib
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "data")]
from medical_files import dicom, encode, save_nifti
from model_helpers import randomize, tiny_config

from sssd_hf import SSSDForImageClassification, SSSDForPreTraining
from sssd_hf.cli.common import save_checkpoint

ROOT = Path(__file__).parents[2]
LABELS = {"id2label": {0: "clear", 1: "opacity"}, "label2id": {"clear": 0, "opacity": 1}}
CALIBRATION = {"temperature": 1.7, "threshold": 0.3, "rule": "youden", "fitted_on": "validation"}
STATISTICS = ([0.5] * 3, [0.5] * 3)


def save_models(folder):
    """Two classifiers (calibrated, plain) and a pretraining checkpoint; 32 pixels, grey."""
    for seed, name in enumerate(("calibrated", "plain", "pretrained")):
        torch.manual_seed(seed)
        fields = {**LABELS, "num_channels": 1, "norm_pix_loss": False}
        if name == "calibrated":
            fields["calibration"] = CALIBRATION
        kind = SSSDForPreTraining if name == "pretrained" else SSSDForImageClassification
        save_checkpoint(
            randomize(kind(tiny_config(**fields)), 0.2).eval(), folder / name, STATISTICS
        )
    return folder


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save_files(folder):
    """Files as people drop them; the DICOM files say who Doe^Jane is, and one name does."""
    Image.fromarray(noise(40, 48)).save(folder / "jane_d.png")
    Image.fromarray(noise(32, 32, 3, seed=1)).save(folder / "photo.jpg")
    values = noise(3, 24, 20, seed=2).astype(np.int16)
    whole = encode(dicom(values[0]))
    (folder / "IM1").write_bytes(whole)
    (folder / "frames.dcm").write_bytes(encode(dicom(values)))
    (folder / "cut.dcm").write_bytes(whole[: len(whole) - 200])
    save_nifti(folder / "volume.nii.gz", noise(12, 14, 9, seed=3))
    (folder / "text.png").write_text("this is no image\n" * 20)
    small = (folder / "jane_d.png").read_bytes()
    head = b"IHDR" + struct.pack(">II", 20000, 20000) + small[24:29]  # says so, in a small file
    check = struct.pack(">I", zlib.crc32(head))
    (folder / "bomb.png").write_bytes(small[:12] + head + check + small[33:])
    return folder


class Server:
    """The demo, listening at `address`; `log` is a file, `temporary` where it may write."""

    def __init__(self, process, log, temporary):
        self.process, self.log, self.temporary = process, log, temporary
        for _ in range(600):
            found = re.search(r"open (http://\S+)", log.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, log.read_text()
        self.address = found[1].rstrip("/")

    def files(self):
        """All that lies where it may write, folders aside."""
        return [p for p in self.temporary.rglob("*") if p.is_file()]


@contextlib.contextmanager
def served(command, folder, **environment):
    """`command` as a `Server`; ended as Ctrl-C ends it."""
    temporary, log = folder / "tmp", folder / "log.txt"
    temporary.mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    with open(log, "w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
    try:
        yield Server(process, log, temporary)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
