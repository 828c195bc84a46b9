"""--to space: a folder that is the demo, to be pushed to the Hub as a Space or run anywhere.

It holds this package's code, so that it depends on no release of it, and the model, or its name
where it is one on the Hub.
"""

import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import yaml

from ..hub.clean import cleaned_file
from . import common
from .app.serving import GRADIO
from .classifiers import ENSEMBLE, MEMBER_FILES
from .demo_app import load_demo_models

PACKAGE = Path(__file__).parents[1]
CODE = ("*.py", "*.css", "*.html", "*.md")  # of the package
# the free machines of Spaces have no GPU; the default index's torch brings gigabytes of CUDA
CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"

APP = '''"""Starts the demo: `python app.py`. Made by scripts/export.py --to space of sssd_hf."""

import os
from pathlib import Path

from sssd_hf.cli.demo_app import main

HERE = Path(__file__).resolve().parent
MODEL = {model!r}  # a folder beside this file, or a name on the Hub
PRETRAINED = {pretrained!r}  # the same; None: no reconstructions


def place(name):
    return str(HERE / name) if (HERE / name).is_dir() else name


if __name__ == "__main__":
    # a Space listens where its environment says, any other machine to itself alone
    words = ["--model_name_or_path", place(MODEL), "--max_file_mb", "50"]
    words += ["--server_name", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")]
    if "GRADIO_SERVER_PORT" in os.environ:
        words += ["--server_port", os.environ["GRADIO_SERVER_PORT"]]
    if PRETRAINED:
        words += ["--pretrained_model", place(PRETRAINED)]
    main(words)
'''

CARD = """
# {title}

**Research software. Not a medical device. Not validated for any clinical use.**

Classifies images as {labels}: drop a PNG, JPEG, DICOM or NIfTI file, or a series. Made by
`scripts/export.py --to space` of sssd_hf.

**Do not upload images of patients here.** What is dropped on the page of a Space is sent to it. The
demo deletes files before it shows the answer and writes nothing down, but for real images run it on
your own computer, where nothing leaves it:

```
pip install -r requirements.txt gradio=={gradio}
python app.py
```

and open http://127.0.0.1:7860.
"""


def write_space(name: str, pretrained: str | None, folder: Path) -> dict[str, Any]:
    """Write the Space into `folder` -> what all_results.json says of it.

    Raises:
        ValueError: a model can't be loaded, or this package is not installed, so that what it
            requires is not known.
    """
    models, _ = load_demo_models([name], pretrained)  # what can't be loaded here can't there
    labels = models[0].classifier.label_names
    places = {"model": copy_model(name, folder / "model")}
    places["pretrained"] = copy_model(pretrained, folder / "pretrained") if pretrained else None
    for pattern in CODE:
        for file in PACKAGE.rglob(pattern):
            target = folder / "sssd_hf" / file.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (folder / "app.py").write_text(APP.format(**places), encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
    (folder / "README.md").write_text(card(name, places, labels), encoding="utf-8")
    return {"models": places, "gradio": GRADIO}


def copy_model(name: str, target: Path) -> str:
    """A checkpoint's or ensemble's files that are needed to load it -> the name of its copy beside
    app.py; the name itself where it is one on the Hub."""
    source = Path(name)
    if not source.is_dir():
        return name
    folders = [source]
    if (source / ENSEMBLE).is_file():
        folders = [source, *sorted(p for p in (source / "members").iterdir() if p.is_dir())]
    for folder in folders:
        place = target / folder.relative_to(source)
        place.mkdir(parents=True)
        for pattern in (*MEMBER_FILES, ENSEMBLE):
            for file in folder.glob(pattern):
                cleaned = cleaned_file(file)  # of paths of this machine
                (place / file.name).write_bytes(file.read_bytes() if cleaned is None else cleaned)
    return target.name


def requirements() -> str:
    """requirements.txt: what this package requires, and the decoders of DICOM and NIfTI. Gradio
    itself comes with a Space."""
    try:
        every = requires("sssd_hf") or []
    except PackageNotFoundError as error:
        raise ValueError(
            "--to space needs to know what sssd_hf requires, and it is not installed: "
            "pip install -e ."
        ) from error
    kept = []
    for line in every:
        requirement, _, marker = line.partition(";")
        if not marker or marker.replace("'", '"').strip() == 'extra == "medical"':
            kept.append(requirement.strip())
    return "\n".join([CPU_INDEX, *kept]) + "\n"


def card(name: str, places: dict[str, str | None], labels: list[str]) -> str:
    """README.md: the metadata that make a repository a Space, and what it is."""
    title = "Medical image classifier"
    metadata = {
        "title": title,
        "emoji": "🫁",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": "3.11",
        "app_file": "app.py",
        "pinned": False,
        "short_description": "Research software. Not a medical device.",
    }
    on_hub = [place for place in places.values() if place and "/" in place]
    if on_hub:
        metadata["models"] = on_hub
    block = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    words = ", ".join(labels[:-1]) + " or " + labels[-1]
    return f"---\n{block}---\n" + CARD.format(title=title, labels=words, gradio=GRADIO)


def export_space(name: str, pretrained: str | None, folder: Path, results: str) -> None:
    """`write_space`, and the file `results` that tells an export from other folders."""
    written = write_space(name, pretrained, folder)
    facts = {"export": "space", **written, "versions": common.versions()}
    common.write_json(folder / results, facts)
