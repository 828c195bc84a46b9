"""Image files to read: generated phantoms, no patient data."""

import csv
import shutil
from pathlib import Path

from sssd_hf.data.phantom import write_phantoms


def phantom_folder(home: Path, count: int, side: int, distinct: int = 64) -> Path:
    """A folder of `count` grey PNGs, side x side, with a metadata.csv by which all are for
    training. Only `distinct` pictures are drawn; the other files are copies."""
    drawn = write_phantoms(home / f"drawn-{side}", max(8, distinct // 4), 4, side, progress=False)
    pictures = sorted((drawn / "images").glob("*.png"))
    folder = home / f"files-{count}-{side}"
    if (folder / "metadata.csv").exists():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = [["file_name", "split"]]
    for i in range(count):
        name = f"images/{i:06d}.png"
        shutil.copyfile(pictures[i % len(pictures)], folder / name)
        rows.append([name, "train"])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder
