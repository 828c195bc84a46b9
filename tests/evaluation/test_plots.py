"""Figures: what they draw, from whatever of a run's log there is."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sssd_hf.evaluation import plots
from sssd_hf.evaluation.plots import (
    PANELS,
    plot_reconstructions,
    plot_training_curves,
    read_metrics,
    training_figure,
)


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def drawn_lines(figure, title):
    """The curves of a panel as lists of (x, y)."""
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()]


def run_records(steps=120, per_epoch=10):
    """A log of pretraining with a probe: one line for each step and one for each epoch."""
    records = []
    for step in range(1, steps + 1):
        where = {"step": step, "epoch": step / per_epoch}
        part = 1 / step + 0.01 * (step % 7)
        records.append(
            where | {"loss": 1.1 * part, "reconstruction_loss": part, "distillation_loss": 2 * part}
            | {"target_std": 0.2, "learning_rate": 1e-4 * step / steps}
        )  # fmt: skip
        if step % per_epoch == 0:
            held_out = {"eval_reconstruction_loss": part, "eval_distillation_loss": 3 * part}
            records.append(where | held_out | {"eval_accuracy": 0.8, "eval_roc_auc": 0.9})
            probe = {"probe_knn_accuracy": 0.6, "probe_linear_accuracy": 0.7}
            records[-1] |= probe | {"probe_linear_roc_auc": 0.75}
    return records


def write(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=float)


def test_training_curves_are_a_png_of_readme_width(tmp_path):
    log = write(tmp_path / "metrics.jsonl", run_records(), '{"step": 121, "los')
    plot_training_curves(log, tmp_path / "curves.png")
    found = pixels(tmp_path / "curves.png")
    assert found.shape[1] == 1800
    assert 600 < found.shape[0] < 2000
    assert found.std() > 5


def test_panels_follow_the_data():
    assert titles(training_figure(run_records())) == [panel[0] for panel in PANELS[1:]]
    fine_tuning = [{"step": 1, "loss": 0.5}, {"step": 1, "eval_loss": 0.6, "eval_accuracy": 0.7}]
    assert titles(training_figure(fine_tuning)) == ["Loss", "Held-out classification"]
    assert titles(training_figure([{"step": 3, "learning_rate": 1e-3}])) == ["Learning rate"]


def test_curves_are_the_logged_values():
    records = [
        {"step": 1, "epoch": 0.5, "loss": 4.0},
        {"step": 2, "epoch": 1.0, "loss": None},
        {"step": 2, "epoch": 1.0, "eval_loss": 3.0},
        {"step": 3, "epoch": 1.5, "loss": float("nan")},
        {"step": 4, "epoch": 2.0, "loss": 9.0},
        {"step": 4, "epoch": 2.0, "loss": 2.0},  # a resumed run has logged step 4 again
        {"step": 4, "epoch": 2.0, "eval_loss": 1.0},
    ]
    training, held_out = drawn_lines(training_figure(records), "Loss")
    assert training == [(0.5, 4.0), (2.0, 2.0)]
    assert held_out == [(1.0, 3.0), (2.0, 1.0)]


def test_probes_have_their_own_panel():
    """With more than two classes there is no area under the curve."""
    records = [
        {"step": 10, "epoch": 1.0, "loss": 2.0},
        {"step": 10, "epoch": 1.0, "probe_knn_accuracy": 0.5, "probe_linear_accuracy": 0.6},
        {"step": 20, "epoch": 2.0, "eval_loss": 1.0},
        {"step": 30, "epoch": 3.0, "probe_knn_accuracy": 0.7, "probe_linear_accuracy": 0.9},
    ]
    figure = training_figure(records)
    assert titles(figure) == ["Loss", "Probe of frozen features"]
    knn, linear = drawn_lines(figure, "Probe of frozen features")
    assert knn == [(1.0, 0.5), (3.0, 0.7)]
    assert linear == [(1.0, 0.6), (3.0, 0.9)]
    shown = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert shown == ["k-NN accuracy", "linear accuracy"]


def test_whole_epochs_give_way_to_steps():
    records = [{"step": step, "epoch": step // 4, "loss": step + 1.0} for step in range(8)]
    figure = training_figure(records)
    assert figure.axes[0].get_xlabel() == "optimiser step"
    assert drawn_lines(figure, "Loss")[0] == [(step, step + 1) for step in range(8)]


def test_long_curves_are_smoothed_by_a_centred_mean():
    values = np.random.default_rng(0).normal(10, 1, size=400)
    records = [{"step": step, "loss": float(value)} for step, value in enumerate(values)]
    raw, smooth = drawn_lines(training_figure(records), "Loss")
    assert [y for _, y in raw] == pytest.approx(values)
    assert all(y == pytest.approx(values[int(x) - 8 : int(x) + 9].mean()) for x, y in smooth)
    assert [x for x, _ in smooth] == list(range(8, 392))


def test_learning_rate_is_in_the_unit_of_its_label():
    figure = training_figure([{"step": 1, "learning_rate": 2e-4}, {"step": 2, "learning_rate": 0}])
    assert figure.axes[0].get_ylabel() == "learning rate / $10^{-4}$"
    line = drawn_lines(figure, "Learning rate")[0]
    assert [y for _, y in line] == pytest.approx([2, 0])


@pytest.mark.parametrize("key", sorted({key for record in run_records() for key in record}))
def test_any_key_may_be_missing(key):
    """Only the panel that has no other curve goes with its key."""
    records = [{k: v for k, v in record.items() if k != key} for record in run_records(60)]
    figure = training_figure(records)
    alone = {"target_std": "Distillation targets", "learning_rate": "Learning rate"}
    assert titles(figure) == [panel[0] for panel in PANELS[1:] if panel[0] != alone.get(key)]


def test_sparse_log_is_drawn(tmp_path):
    """One point, a constant of zero, a curve over three decades: nothing that trips an axis."""
    records = [{"epoch": 1, "loss": 900.0}, {"epoch": 2, "loss": 1.0}, {"epoch": 1, "eval_loss": 2}]
    records += [{"epoch": 1, "eval_accuracy": 1.0}, {"epoch": 1, "learning_rate": 0}]
    figure = training_figure(records)
    assert titles(figure) == ["Loss", "Held-out classification", "Learning rate"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    plot_training_curves(write(tmp_path / "metrics.jsonl", records), tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 5


@pytest.mark.parametrize("tail", ['{"step": 99, "lo', '{"step": 99}\n\n{"a', "7", ""])
def test_truncated_last_line_is_ignored(tmp_path, tail):
    log = write(tmp_path / "metrics.jsonl", run_records(20), tail)
    assert read_metrics(log)[:22] == run_records(20)
    assert len(read_metrics(log)) == 22 + ('{"step": 99}\n' in tail)


def test_broken_line_inside_is_named(tmp_path):
    log = write(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}], '{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: no JSON object"):
        read_metrics(log)


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_training_curves(write(tmp_path / "metrics.jsonl", []), tmp_path / "curves.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        training_figure([{"step": 1, "gpu_memory": 3}, {"loss": 1.0}])


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 20, 30, 3)])
def test_reconstructions_stand_in_their_cells(tmp_path, caplog, shape):
    """Four flat columns of known brightness must come out at the middle of their cells."""
    columns = [np.full(shape, value) for value in (0.0, 0.25, 0.5, 2.0)]  # 2 is clipped to 1
    plot_reconstructions(*columns, tmp_path / "grid.png")
    found = pixels(tmp_path / "grid.png")
    height, width = found.shape[:2]
    assert width == 1800
    assert height == pytest.approx(shape[0] * 450 * shape[1] / shape[2], rel=0.25)
    rows = [height - 1 - round((row + 0.5) * 450 * shape[1] / shape[2]) for row in range(shape[0])]
    for row in rows:
        middle = [found[row, 225 + 450 * column].mean() for column in range(4)]
        assert middle == pytest.approx([0, 64, 128, 255], abs=1.5)
    assert found[:60].min() < 100  # titles above the pictures
    assert not caplog.records  # matplotlib logs a warning for colours out of range


def test_reconstructions_show_the_images_upright(tmp_path):
    image = np.zeros((1, 16, 16))
    image[0, :4, :4] = 1  # the top left corner
    plot_reconstructions(image, image, image, image, tmp_path / "grid.png")
    found = pixels(tmp_path / "grid.png")
    assert found[-430 + 40, 40].mean() == 255
    assert found[-40, 40].mean() == 0


def test_reconstructions_refuse_other_shapes(tmp_path):
    good, other = np.zeros((2, 8, 8)), np.zeros((2, 8, 9))
    for columns in ([good, good, good, other], [np.zeros((0, 8, 8))] * 4, [np.zeros((8, 8))] * 4):
        with pytest.raises(ValueError, match="expected four equal shapes"):
            plot_reconstructions(*columns, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="1 titles"):
        plot_reconstructions(good, good, good, good, tmp_path / "grid.png", titles=["input"])


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    program = (
        "import runpy, sys\n"
        "plots = runpy.run_path(sys.argv[1])\n"
        "assert 'matplotlib' not in sys.modules, 'imported too early'\n"
        "plots['training_figure']([{'step': 1, 'loss': 1.0}]).savefig(sys.argv[2])\n"
        "assert 'matplotlib.figure' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot imported'\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, plots.__file__, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
