"""Demo: a page in the browser that classifies what is dropped on it.

`python scripts/demo_app.py --model_name_or_path runs/finetuned --pretrained_model runs/pretrained`
and open http://127.0.0.1:7860. Several models are shown side by side. Research software, not a
medical device. It needs `pip install 'sssd_hf[demo]'`.
"""

from .app import serving
from .common import check_checkpoint
from .parsing import parse


def main(argv: list[str] | None = None) -> int:
    (arguments,) = parse("demo_app", __doc__, argv)
    serving.prepare_environment()
    serving.require_gradio()
    from .app.answers import load_all, load_reconstructor
    from .app.intake import Limits
    from .app.page import CSS, Demo, build

    if arguments.pretrained_model:
        check_checkpoint(arguments.pretrained_model, "--pretrained_model")
    models = load_all(arguments.model_name_or_path)
    reconstructor = (
        load_reconstructor(arguments.pretrained_model) if arguments.pretrained_model else None
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
