"""Demo: a page in the browser that classifies what is dropped on it.

`python scripts/demo_app.py --model_name_or_path runs/finetuned --pretrained_model runs/pretrained`
and open http://127.0.0.1:7860. Several models are shown side by side. Research software, not a
medical device. It needs `pip install 'sssd_hf[demo]'`.
"""

from typing import TYPE_CHECKING

from .app import serving
from .common import check_checkpoint
from .parsing import parse

if TYPE_CHECKING:
    from .app.answers import NamedClassifier, Reconstructor


def load_demo_models(
    names: list[str], pretrained: str | None
) -> "tuple[list[NamedClassifier], Reconstructor | None]":
    """What the page shows.

    Raises:
        ValueError: naming the option whose checkpoint can't be used.
    """
    from .app.answers import load_all, load_reconstructor

    if pretrained:
        check_checkpoint(pretrained, "--pretrained_model")
    return load_all(names), load_reconstructor(pretrained) if pretrained else None


def main(argv: list[str] | None = None) -> int:
    (arguments,) = parse("demo_app", __doc__, argv)
    serving.prepare_environment()
    serving.keep_memory_flat()
    serving.require_gradio()
    from .app.intake import Limits
    from .app.page import CSS, Demo, build

    models, reconstructor = load_demo_models(
        arguments.model_name_or_path, arguments.pretrained_model
    )
    limits = Limits(
        files=arguments.max_files,
        images=arguments.max_slices,
        file_bytes=arguments.max_file_mb * 2**20,
    )
    with serving.upload_folder() as uploads:
        blocks = build(Demo(models, reconstructor, uploads, limits), arguments.title)
        address = serving.start(
            blocks,
            CSS.read_text(encoding="utf-8"),
            arguments.server_name,
            arguments.server_port,
            limits.file_bytes,
        )
        print(f"open {address} (Ctrl-C ends it)", flush=True)
        serving.wait_for_the_end()
        blocks.close(verbose=False)
    return 0
