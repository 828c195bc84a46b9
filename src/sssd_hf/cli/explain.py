"""Figures of what a classifier looked at, for the report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.cache import Images
from ..evaluation.explanations import DEFAULT_METHOD, explain, randomisation_check
from ..evaluation.overlays import choose_errors, choose_examples, plot_explanations
from ..modeling_sssd import SSSDForImageClassification
from .batches import model_inputs

NAME_LETTERS = 28  # of a file name in a title


def write_explanations(
    model: SSSDForImageClassification,
    images: Images,
    statistics: tuple[list[float], list[float]],
    labels: np.ndarray,
    probabilities: np.ndarray,
    file_names: Sequence[str],
    names: Sequence[str],
    folder: str | Path,
    count: int = 8,
    method: str = DEFAULT_METHOD,
) -> dict[str, Any]:
    """Write `errors.png`, the wrongly classified images of which the model was most certain, and
    `examples.png`, the right ones of each class of which it was, with heat maps of the predicted
    class. A figure without an image is not written, and one from before removed.

    Args:
        model: in eval mode.
        images: what `labels` (images,), `probabilities` (images, classes) and `file_names` are of.
        statistics: (mean, std) of the normalisation.
        names: of the classes.
        folder: where the figures go; made where it is missing.
        count: images of a figure, at most.

    Returns:
        `method`; `num_errors`, of all images; `errors` and `examples`, lists of {file_name, label,
        predicted, probability} in the figures' order; `figures`, the names of the files written;
        `randomisation`, what `randomisation_check` finds on the images shown, or None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wrong = np.asarray(probabilities).argmax(axis=1) != np.asarray(labels)
    chosen = {
        "errors": choose_errors(labels, probabilities, count),
        "examples": choose_examples(labels, probabilities, count),
    }
    facts = {"method": method, "num_errors": int(wrong.sum()), "figures": []}
    for figure, indices in chosen.items():
        facts[figure] = [
            {
                "file_name": file_names[i],
                "label": names[labels[i]],
                "predicted": names[probabilities[i].argmax()],
                "probability": float(probabilities[i].max()),
            }
            for i in indices
        ]
        path = folder / f"{figure}.png"
        path.unlink(missing_ok=True)
        if len(indices):
            index = torch.as_tensor(indices)
            pixel_values = model_inputs(model, images, index, statistics)
            predicted = torch.as_tensor(probabilities[indices].argmax(axis=1))
            maps = explain(model, pixel_values, method, predicted)
            titles = [_title(fact) for fact in facts[figure]]
            plot_explanations(_pictures(images, index), maps.cpu().numpy(), titles, path)
            facts["figures"].append(path.name)
    shown = torch.as_tensor(np.concatenate(list(chosen.values())))
    facts["randomisation"] = (
        # one draw: a report needs no third digit
        randomisation_check(model, model_inputs(model, images, shown, statistics), method, 1)
        if len(shown)
        else None
    )
    return facts


def _pictures(images: Images, index: torch.Tensor) -> np.ndarray:
    """(batch, height, width) or (batch, height, width, 3) in 0..1, as decoded."""
    pixels = images.batch(index, "cpu").permute(0, 2, 3, 1).numpy() / 255
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _title(fact: dict[str, Any]) -> str:
    name = fact["file_name"]
    name = name if len(name) <= NAME_LETTERS else "…" + name[1 - NAME_LETTERS :]
    answer = f"{fact['predicted']} {100 * fact['probability']:.0f} %"
    truth = "" if fact["label"] == fact["predicted"] else f", in truth {fact['label']}"
    return f"{name}\n{answer}{truth}"
