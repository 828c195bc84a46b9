"""Run in a foreign environment: what an export answers there, without sssd_hf.

    python load_export.py JOBS.json

Each job: "loader" (transformers, pipeline, timm or onnxruntime), "folder", "inputs" (.npz with
"images", normalised, and "noise"; "pictures", uint8 RGB, for the pipeline) and "outputs" (.npz,
gets "result" and "version").
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import numpy as np

sys.modules["sssd_hf"] = None  # an import of it fails


class _Names(type):
    """A class whose attributes are their names, for `InterpolationMode.NEAREST` and the like."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class HollowTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for its transforms, and no ViT uses it: hollow modules are enough
    (its wheels on the index are built for a CUDA torch)."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Module(spec.name)
        module.__path__, module.__version__ = [], "0"
        return module

    def exec_module(self, module):
        pass


def strict(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()


def load_transformers(folder, inputs):
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForImageClassification, ViTMAEForPreTraining

    images = torch.from_numpy(inputs["images"])
    with torch.no_grad():
        if AutoConfig.from_pretrained(folder).model_type == "vit_mae":
            model = strict(ViTMAEForPreTraining, folder)
            more = {"noise": torch.from_numpy(inputs["noise"])}
        else:
            model, more = strict(AutoModelForImageClassification, folder), {}
        return model(images, **more).logits.numpy(), transformers.__version__


def load_pipeline(folder, inputs):
    import transformers
    from PIL import Image

    classify = transformers.pipeline("image-classification", model=folder)
    names = classify.model.config.id2label
    rows = []
    for picture in inputs["pictures"]:
        scores = {a["label"]: a["score"] for a in classify(Image.fromarray(picture), top_k=None)}
        rows.append([scores[names[i]] for i in range(len(names))])
    return np.array(rows), transformers.__version__


def load_timm(folder, inputs):
    import torch

    if not any(isinstance(finder, HollowTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, HollowTorchvision())
    import timm
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    description = json.loads((Path(folder) / "config.json").read_text())
    built = timm.create_model(description["architecture"], **description["model_args"])
    assert type(built) is VisionTransformer
    built.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=True)
    for module in built.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = description["sssd_hf"]["layer_norm_eps"]
    readme = (Path(folder) / "README.md").read_text()
    names = {"timm": timm, "FOLDER": folder}
    # the lines that users are told to run
    exec(readme.split("## This form")[1].split("```python\n")[1].split("```")[0], names)
    with torch.no_grad():
        images = torch.from_numpy(inputs["images"])
        logits = names["model"].eval()(images)
        assert torch.equal(logits, built.eval()(images))
    return logits.numpy(), timm.__version__


def load_onnxruntime(folder, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        f"{folder}/model.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"pixel_values": inputs["images"]})[0], onnxruntime.__version__


LOADERS = {
    "transformers": load_transformers,
    "pipeline": load_pipeline,
    "timm": load_timm,
    "onnxruntime": load_onnxruntime,
}


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        result, version = LOADERS[job["loader"]](job["folder"], dict(np.load(job["inputs"])))
        np.savez(job["outputs"], result=result, version=version)
