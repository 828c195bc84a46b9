"""A folder of phantoms with one problem of each kind, and how many of each."""

import csv
import shutil

from PIL import Image, ImageEnhance

from sssd_hf.data.phantom import CLASS_NAMES, make_phantoms

COLUMNS = ("file_name", "label", "patient_id", "split")
COUNTS = {
    ("test", "group"): 1,
    ("test", "exact"): 3,
    ("test", "near"): 2,
    ("validation", "near"): 1,
}


def split_of(number):
    return "train" if number <= 14 else "validation" if number <= 18 else "test"


def write_table(root, rows):
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def clean_folder(root, patients=24):
    """One slice of each patient, whole patients in each split; the pictures and table rows."""
    (root / "images").mkdir(parents=True)
    pictures, rows = {}, []
    for item in make_phantoms(patients, 1, 96, seed=5):
        number = int(item.patient_id[1:])
        pictures[number] = Image.fromarray(item.image)
        name = f"images/{item.patient_id}.png"
        pictures[number].save(root / name)
        rows.append((name, CLASS_NAMES[item.label], item.patient_id, split_of(number)))
    write_table(root, rows)
    return pictures, rows


def planted_folder(root):
    pictures, rows = clean_folder(root, 25)
    labels = {number: rows[number - 1][1] for number in pictures}
    other = {CLASS_NAMES[0]: CLASS_NAMES[1], CLASS_NAMES[1]: CLASS_NAMES[0]}
    images = root / "images"

    def add(name, label, split, group=None):
        rows.append((f"images/{name}", label, group or f"group of {name}", split))

    # the last patient's picture under the name of one in training
    rows[24] = (*rows[24][:2], "p0008", "test")
    shutil.copy(images / "p0001.png", images / "same_bytes.png")
    add("same_bytes.png", labels[1], "test")
    pictures[2].convert("RGB").save(images / "same_pixels.bmp")
    add("same_pixels.bmp", labels[2], "test")
    pictures[3].save(images / "compressed.jpg", quality=40)
    add("compressed.jpg", labels[3], "test")
    pictures[4].crop((1, 1, 95, 95)).save(images / "trimmed.png")
    add("trimmed.png", labels[4], "test")
    ImageEnhance.Brightness(pictures[5]).enhance(1.15).save(images / "brighter.png")
    add("brighter.png", labels[5], "validation")
    pictures[6].save(images / "other_label.png", optimize=True)
    add("other_label.png", other[labels[6]], "test")
    pictures[7].save(images / "other_label.jpg", quality=60)
    add("other_label.jpg", other[labels[7]], "train")
    (images / "cut_short.png").write_bytes((images / "p0009.png").read_bytes()[:1500])
    add("cut_short.png", labels[9], "train")
    (images / "empty.png").touch()
    add("empty.png", labels[9], "train")
    for grey in (0, 90):
        Image.new("L", (96, 96), grey).save(images / f"blank{grey}.png")
        add(f"blank{grey}.png", labels[9], "train")
    write_table(root, rows)
    return root
