"""Export: a checkpoint as a model that others load without this package.

`python scripts/export.py --model_name_or_path runs/finetuned --to vit --output_dir runs/vit`; also
--to dinov2, timm, onnx (with --int8 for the CPU) and vit_mae. What was written is loaded again with
the foreign class and compared on random images before the folder appears; all_results.json has the
greatest difference. --to space writes the demo (see demo_app.py) as a folder that runs by itself.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..hub import exports
from . import common
from .arguments import DataArguments, ExportArguments
from .classifiers import load_model
from .export_int8 import export_int8
from .parsing import parse

logger = logging.getLogger("sssd_hf")
RESULTS = "all_results.json"
MAX_DIFFERENCE = 1e-4  # of logits or predicted pixels


# ---------------------------------------------------------------------- the folder


def check_output(output: Path, source: str, overwrite: bool) -> None:
    """Raises ValueError where the output would hide or destroy something."""
    if common.holds(output, source):
        raise ValueError(
            f"--output_dir {output} holds the checkpoint itself ({source}); name another folder."
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(
            f"--output_dir {output} exists. Name another folder, or pass --overwrite_output_dir "
            "true to replace an earlier export."
        )
    try:
        earlier = "export" in json.loads((output / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = False
    if not earlier:
        raise ValueError(
            f"--output_dir {output} holds something else than an earlier export, and is not "
            "replaced. Name another folder."
        )


@contextlib.contextmanager
def written_at_once(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its name at the end, or is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        yield temporary
        if output.exists():
            output.rename(old)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------------- the forms


def check_preparation(config: Any, to: str) -> str | None:
    """A warning where users of the export must prepare images otherwise than the stock processor.

    Raises:
        ValueError: the form is one for the pipeline, which would prepare them wrongly.
    """
    preparation = config.preparation
    if preparation is None:
        return None
    mode = preparation.get("resize_mode", "squash")
    if mode != "squash" and to in ("vit", "dinov2"):
        raise ValueError(
            f"--to {to}: the model was trained with --resize_mode {mode}, which the stock image "
            "processor can't do: the pipeline would squash images and answer wrongly. Export by "
            "--to onnx or timm and prepare the images yourself, or fine-tune with --resize_mode "
            "squash."
        )
    return (
        f"the model's images were prepared in a way that the stock processor can't repeat "
        f"({json.dumps(preparation)}): prepare them so before they are handed to the export; its "
        "config says the same"
    )


def export_form(
    arguments: ExportArguments, data: DataArguments, folder: Path
) -> tuple[dict[str, Any], Any]:
    """Write the model into `folder` -> (what all_results.json says of it, the model's config)."""
    name, to = arguments.model_name_or_path, arguments.to
    if to == "onnx":
        from ..hub.onnx import require

        require("onnx", "onnxscript", "onnxruntime")
    pretrained = to == "vit_mae"
    if pretrained:
        original = exports.load_pretrained(name)
    else:
        original = load_model(name, dtype=torch.float32)
    config = original.config
    processor = common.processor_fields(config, common.read_statistics(name, config.num_channels))
    warning = check_preparation(config, to)
    if warning:
        logger.warning(warning)
    result: dict[str, Any] = {"preparation_warning": warning}
    if pretrained:
        exports.export_vit_mae(original, folder)
        difference = exports.check_vit_mae(original, folder)
        checked = "transformers ViTMAEForPreTraining"
    else:
        temperature = 1.0
        model = exports.with_three_channels(original)
        if arguments.fold_temperature:
            model = exports.with_folded_temperature(model)
            temperature = model.config.folded_temperature
        result["folded_temperature"] = temperature if arguments.fold_temperature else None
        result["calibration"] = model.config.calibration
        if to == "onnx":
            difference, checked = export_onnx_form(
                model, original, temperature, processor, arguments, data, folder, result
            )
        elif to == "timm":
            exports.export_timm(model, folder, processor)
            if config.layer_norm_eps != exports.TIMM_EPS:
                logger.warning(
                    f"timm builds norms with an epsilon of {exports.TIMM_EPS:g}, this model has "
                    f"{config.layer_norm_eps:g}: set it after loading, by the lines in the "
                    "export's README.md, or the answers differ"
                )
            difference, checked = exports.check_timm(original, folder, temperature), "timm"
        else:
            export = exports.export_vit if to == "vit" else exports.export_dinov2
            export(model, folder)
            difference = exports.check_classifier(original, folder, temperature)
            checked = (
                "transformers "
                + json.loads((folder / "config.json").read_text())["architectures"][0]
            )
    if difference is None:
        logger.warning("timm can't be imported here: the export was not compared with it")
    elif to != "onnx":
        check_difference(to, difference)
    result |= {"largest_difference": difference, "compared_with": checked}
    if to != "timm":
        common.write_json(folder / "preprocessor_config.json", processor)
    return result, config


def export_onnx_form(
    model: Any,
    original: Any,
    temperature: float,
    processor: dict[str, Any],
    arguments: ExportArguments,
    data: DataArguments,
    folder: Path,
    result: dict[str, Any],
) -> tuple[float, str]:
    """model.onnx and model.json into `folder` -> (greatest difference of logits, from what)."""
    import onnxruntime

    from ..hub import onnx

    path = folder / ("fp32.onnx" if arguments.int8 else "model.onnx")
    facts = onnx.facts_of(model, processor, arguments.model_name_or_path)
    onnx.export_onnx(model, path, facts)
    differences = onnx.check_onnx(original, path, temperature)
    result |= {"opset": onnx.OPSET, "largest_difference_by_batch_size": differences}
    check_difference("onnx", max(differences.values()))
    if arguments.int8:  # whose difference is far larger: it is judged by its accuracy
        result["int8"] = export_int8(path, folder, original, processor, data, arguments)
        facts |= {"precision": f"int8 ({result['int8']['way']} quantisation), head fp32"}
        onnx.write_facts(folder / "model.onnx", facts)
        differences = onnx.check_onnx(original, folder / "model.onnx", temperature)
        result["largest_difference_by_batch_size"] = differences
        for file in (path, path.with_suffix(".json")):
            file.unlink()
    return max(differences.values()), f"onnxruntime {onnxruntime.__version__}"


def check_difference(to: str, difference: float) -> None:
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"--to {to}: the export differs from the checkpoint by {difference:.2e} on random "
            f"images, expected at most {MAX_DIFFERENCE}; nothing was written."
        )


_USE = {
    "vit": 'pipeline("image-classification", model=FOLDER)  # transformers 4.57 to 5.23',
    "dinov2": 'pipeline("image-classification", model=FOLDER)  # transformers',
    "vit_mae": "ViTMAEForPreTraining.from_pretrained(FOLDER)  # transformers",
    "onnx": 'onnxruntime.InferenceSession(FOLDER + "/model.onnx")  # see model.json',
}


def describe(arguments: ExportArguments, config: Any, result: dict[str, Any]) -> str:
    """A section for the folder's README.md."""
    calibration = config.calibration
    lines = [
        "## This form",
        "",
        f"Exported by sssd_hf (`scripts/export.py --to {arguments.to}`).",
        "",
    ]
    timm = arguments.to == "timm"
    use = exports.timm_use(config.layer_norm_eps) if timm else _USE[arguments.to]
    lines += ["```python", use, "```", ""]
    if timm and config.layer_norm_eps != exports.TIMM_EPS:
        lines.append(
            f"timm alone would give its norms an epsilon of {exports.TIMM_EPS:g} instead of "
            f"{config.layer_norm_eps:g}, and so other answers: config.json has no place for it "
            "that timm reads."
        )
    difference = result["largest_difference"]
    lines.append(
        "Not compared with its loader."
        if difference is None
        else f"Greatest difference from the original's output on random images: {difference:.1e} "
        f"({result['compared_with']})."
    )
    if int8 := result.get("int8"):
        lines.append(int8_words(int8))
    if result.get("folded_temperature"):
        lines.append(
            f"The logits are divided by the calibration's temperature "
            f"({result['folded_temperature']:.4f}, fitted on {calibration['fitted_on']}): their "
            "softmax is the calibrated probability. What is said of a temperature above is of the "
            "checkpoint that this was exported from: do not divide again."
        )
    elif calibration:
        lines.append(
            f"The logits are not calibrated: divide them by {calibration['temperature']:.4f} "
            f"(fitted on {calibration['fitted_on']}) before the softmax. The output "
            "`probabilities` of the ONNX form is so."
        )
    if calibration and calibration["threshold"] is not None:
        lines.append(
            f"An image counts as {config.id2label[1]} where its calibrated probability is at "
            f"least {calibration['threshold']:.4f} ({calibration['rule']}); the pipeline itself "
            "names the most probable label."
        )
    if result["preparation_warning"]:
        lines.append(f"Note: {result['preparation_warning']}.")
    lines.append("Research software. Not a medical device.")
    return "\n".join(lines) + "\n"


def int8_words(int8: dict[str, Any]) -> str:
    """What is known of an int8 export's loss, for its README.md."""
    text = f"All its products but the head's are of 8-bit numbers ({int8['way']} quantisation)"
    measured = int8["measured"]
    if measured is None:
        return f"{text}. What that costs in accuracy was not measured: compare it on your images."
    before, after = (measured[name]["accuracy"] for name in ("onnx_fp32", "onnx_int8"))
    return (
        f"{text}: accuracy {after:.4f}, in fp32 {before:.4f}, on {measured['num_images']} "
        f"{measured['on']} images, by the most probable class (not at a threshold)."
    )


def main(argv: list[str] | None = None) -> int:
    data, arguments = parse("export", __doc__, argv)
    name, output = arguments.model_name_or_path, Path(arguments.output_dir)
    if arguments.to != "space":  # whose loader takes ensembles too
        common.check_checkpoint(name)
    check_output(output, name, arguments.overwrite_output_dir)
    if arguments.to == "space":
        from .export_space import export_space

        with written_at_once(output) as folder:
            export_space(name, arguments.pretrained_model, folder, RESULTS)
        print(f"{output}: space; python {output / 'app.py'} starts it")
        return 0
    with written_at_once(output) as folder:
        result, config = export_form(arguments, data, folder)
        difference = result["largest_difference"]
        card = Path(name) / "README.md"
        text = card.read_text(encoding="utf-8").rstrip() + "\n\n" if card.is_file() else ""
        (folder / "README.md").write_text(
            text + describe(arguments, config, result), encoding="utf-8"
        )
        common.write_json(
            folder / RESULTS,
            {
                "export": arguments.to,
                "model_name_or_path": name,
                **result,
                "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                "versions": common.versions(),
            },
        )
    shown = "not compared" if difference is None else f"greatest difference {difference:.2e}"
    print(f"{output}: {arguments.to}, {shown} ({result['compared_with']})")
    return 0
