"""Pretraining the way of the example scripts, for comparison: `datasets`, Pillow's random crop in
DataLoader workers, the stock model (positions restored), torch's default AdamW, one process.

`python benchmarks/example_way.py --data_dir FOLDER ...`; prints a line of JSON.
"""

import argparse
import json
import math
import random
import time
from contextlib import nullcontext

import numpy as np
import torch
from datasets import Image, load_dataset
from models import stock_model
from PIL import Image as Pillow

from sssd_hf import SSSDConfig


def random_resized_crop(image, size: int, scale=(0.2, 1.0), aspects=(3 / 4, 4 / 3)):
    """As torchvision's RandomResizedCrop draws it, bicubic."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(aspects[0]), math.log(aspects[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            box = (left, top, left + w, top + h)
            return image.resize((size, size), Pillow.Resampling.BICUBIC, box=box)
    return image.resize((size, size), Pillow.Resampling.BICUBIC)


class Transform:
    def __init__(self, size: int, mode: str):
        self.size, self.mode = size, mode

    def __call__(self, rows):
        pixels = []
        for image in rows["image"]:
            image = random_resized_crop(image.convert(self.mode), self.size)
            if random.random() < 0.5:
                image = image.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
            values = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
            values = values[None] if self.mode == "L" else values.permute(2, 0, 1)
            pixels.append((values - 0.5) / 0.5)
        return {"pixel_values": pixels}


def collate(rows):
    return torch.stack([row["pixel_values"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--config", default="", help="JSON of an SSSDConfig; empty: stock's own.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    config = SSSDConfig(**json.loads(options.config)) if options.config else None
    model = stock_model(config, options.device)
    grey = model.config.num_channels == 1
    dataset = load_dataset("imagefolder", data_dir=options.data_dir, split="train")
    dataset = dataset.cast_column("image", Image())
    dataset.set_transform(Transform(model.config.image_size, "L" if grey else "RGB"))
    loader = torch.utils.data.DataLoader(
        dataset,
        options.batch,
        shuffle=True,
        num_workers=options.workers,
        collate_fn=collate,
        pin_memory=options.device == "cuda",
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    started, waited, seen = time.perf_counter(), 0.0, 0
    for _ in range(options.epochs):
        mark = time.perf_counter()
        for images in loader:
            waited += time.perf_counter() - mark
            images = images.to(options.device, non_blocking=True)
            half = options.precision == "bf16"
            with torch.autocast(options.device, torch.bfloat16) if half else nullcontext():
                loss = model(images).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen += len(images)
            mark = time.perf_counter()
    loss = loss.item()
    seconds = time.perf_counter() - started
    print(
        json.dumps({"images_per_second": seen / seconds, "waiting": waited / seconds, "loss": loss})
    )


if __name__ == "__main__":
    main()
