"""How far heat maps can be believed: on phantoms, where the lesions' places are known.

    python benchmarks/explanations.py [--model_name_or_path demo/finetuned] [--data_dir demo/data]

after `make demo`. For each method: how often a map's peak falls on a lesion (the pointing game, on
all test slices with lesions, the class explained being `opacity`), with a 95 % bootstrap interval
over patients; what a random cell and the best fixed cell would hit; the rank correlation with the
maps of the same model with random weights (classifier alone; all layers); and the time.

Expected, some minutes on one core: 140 slices of 35 patients, random cell 0.05, best fixed cell
0.49. Of one training each: the demo's model (mean pooling) and one fine-tuned with --pooling cls.

                        peak on a lesion, mean       peak on a lesion, CLS
    attention_rollout   0.64 (0.53 to 0.75)          0.11 (0.04 to 0.19)
    gradient_attention  0.56 (0.44 to 0.66)          0.81 (0.73 to 0.87)
    grad_cam            0.38 (0.27 to 0.49)          0.11 (0.07 to 0.16)
    occlusion           0.57 (0.45 to 0.69)          0.66 (0.54 to 0.78)
    leave_out           0.67 (0.57 to 0.76)          0.72 (0.61 to 0.81)

All depend on the weights (correlation with all drawn anew: at most 0.11); rollout does not on the
classifier (1.00), and gradient_attention with mean pooling but in part (0.72).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from sssd_hf.cli.batches import model_inputs
from sssd_hf.cli.common import read_statistics
from sssd_hf.cli.data import decode_split, preparation_of
from sssd_hf.data.phantom import CLASS_NAMES, lesion_masks
from sssd_hf.data.sources import load_images
from sssd_hf.evaluation.explanations import METHODS, explain, pointing_game, randomisation_check
from sssd_hf.evaluation.intervals import bootstrap_intervals
from sssd_hf.modeling_sssd import SSSDForImageClassification


def slices_with_lesions(model, model_name, data_dir):
    """(pixel_values, masks, patients) of the test split's opacities."""
    dataset = load_images(data_dir)
    columns = {name: dataset[name][:] for name in ("file_name", "label", "patient_id", "split")}
    names = dataset.features["label"].names
    rows = [
        row
        for row, (label, split) in enumerate(zip(columns["label"], columns["split"]))
        if split == "test" and names[label] == CLASS_NAMES[1]
    ]
    size = tuple(n * p for n, p in zip(model.config.grid_size, model.encoder.embeddings.patch))
    images = decode_split(dataset, rows, preparation_of(model.config, size))
    statistics = read_statistics(model_name, model.config.num_channels)
    pixel_values = model_inputs(model, images, torch.arange(len(images)), statistics)
    masks = lesion_masks(data_dir, [columns["file_name"][row] for row in rows])
    return pixel_values, masks, np.array([columns["patient_id"][row] for row in rows])


def share_with_interval(hits, patients):
    """A share and its interval: the accuracy of answers that are right where `hits`."""
    answers = np.stack([~hits, hits], axis=1).astype(float)
    low, high = bootstrap_intervals(np.ones(len(hits), int), answers, patients)["accuracy"]
    return float(hits.mean()), low, high


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name_or_path", default="demo/finetuned")
    parser.add_argument("--data_dir", type=Path, default=Path("demo/data"))
    parser.add_argument("--random_images", type=int, default=32, help="For the random weights.")
    parser.add_argument("--output_file", type=Path, help="JSON of the table.")
    arguments = parser.parse_args()
    if not (arguments.data_dir / "phantom.json").is_file():
        parser.error(f"{arguments.data_dir} holds no phantoms: run `make demo` first")
    model = SSSDForImageClassification.from_pretrained(arguments.model_name_or_path).eval()
    pixel_values, masks, patients = slices_with_lesions(
        model, arguments.model_name_or_path, arguments.data_dir
    )
    target = torch.full((len(pixel_values),), model.config.label2id[CLASS_NAMES[1]])
    with torch.no_grad():
        found = (model(pixel_values).logits.argmax(1) == target).float().mean().item()
    spread = torch.linspace(0, len(pixel_values) - 1, arguments.random_images).long()
    table = []
    for method in METHODS:
        started = time.perf_counter()
        maps = torch.cat(
            [
                explain(model, images, method, targets)
                for images, targets in zip(pixel_values.split(16), target.split(16))
            ]
        )
        seconds = time.perf_counter() - started
        game = pointing_game(maps.numpy(), masks)
        check = randomisation_check(model, pixel_values[spread], method)
        table.append(
            {
                **check,
                "pointing_game": share_with_interval(game["hits"], patients),
                "chance": float(game["chance"].mean()),
                "fixed_cell": float(game["fixed"].mean()),
                "milliseconds_an_image": 1000 * seconds / len(pixel_values),
            }
        )
    print(
        f"{len(masks)} test slices of {len(set(patients))} patients, {100 * found:.0f} % found; "
        f"lesions cover {100 * masks.mean():.1f} % of a slice; pooling={model.config.pooling}; a "
        f"random cell hits {table[0]['chance']:.2f}, the best fixed cell "
        f"{table[0]['fixed_cell']:.2f}\n"
    )
    print(
        f"{'method':20s}{'peak on a lesion':>24s}{'random classifier':>20s}"
        f"{'all random':>12s}{'ms an image':>13s}"
    )
    for row in table:
        share, low, high = row["pointing_game"]
        correlations = [
            "none" if row[name] is None else f"{row[name]:.2f}"
            for name in ("classifier_correlation", "all_layers_correlation")
        ]
        print(
            f"{row['method']:20s}{f'{share:.2f} ({low:.2f} to {high:.2f})':>24s}"
            f"{correlations[0]:>20s}{correlations[1]:>12s}{row['milliseconds_an_image']:13.1f}"
        )
    for row in table:
        print(f"{row['method']}: {row['verdict']}")
    if arguments.output_file:
        arguments.output_file.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
