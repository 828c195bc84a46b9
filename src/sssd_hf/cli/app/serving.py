"""Serving the page: to this computer alone, without files, other hosts or traces."""

import contextlib
import importlib.util
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

GRADIO = "6.31.0"  # the release that the demo was made with
# The paths that the page itself asks for. Gradio has more: for files of the server, as a proxy of
# other hosts, for its API's description; none of them is needed here.
SERVED = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/(assets|static|svelte|_app)/[\w./@+-]*"
    r"|/gradio_api/(info|heartbeat/\w+|startup-events|upload|upload_progress|queue/(join|data)"
    r"|cancel|reset)/?"
)
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


LOOPBACK = ("127.0.0.1", "::1", "localhost")


class OnlyThePage:
    """ASGI middleware: what is not in `SERVED` does not exist, and the browser is told to ask no
    other host."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not _from_this_page(scope):
            return await _refuse(send, 403, b"Asked by another page")
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if not SERVED.fullmatch(path) or ".." in path:
            return await _refuse(send, 404, b"Not found")

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        return await self.app(scope, receive, send_with_headers)


async def _refuse(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _from_this_page(scope: dict[str, Any]) -> bool:
    """Not from another site's page in the user's browser: one that posts here tells its own
    Origin; one whose name has been made to point to this computer tells that name as Host."""
    told = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
    host, origin = told.get(b"host", ""), told.get(b"origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return False
    server = (scope.get("server") or ("",))[0]
    return server not in LOOPBACK or urlsplit(f"//{host}").hostname in LOOPBACK


def prepare_environment() -> None:
    """No telemetry of Gradio or the Hub. Before Gradio is imported, which reads it then."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def keep_memory_flat() -> None:
    """Two of glibc's arenas in place of one a thread: with those of Gradio's threads the process
    grows by 25 MB in 200 answers, with two it stays. Other systems have no such option."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX of malloc.h


def require_gradio() -> None:
    """Raises ValueError where it is missing. It is imported later: it makes a folder where uploads
    arrive when it is, which must be ours by then."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "The demo needs Gradio: pip install 'sssd_hf[demo]' (or pip install -e '.[demo]')."
        )


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """A new folder, of this user alone, where Gradio puts uploads; deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="sssd_demo_") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def start(blocks: Any, css: str, server_name: str, server_port: int | None, file_bytes: int) -> str:
    """Serve `blocks` in a thread -> the address."""
    import gradio as gr
    from starlette.middleware import Middleware

    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    _, address, _ = blocks.launch(
        server_name=server_name,
        server_port=server_port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
        show_error=False,
        footer_links=[],
        run_history=False,  # else the browser stores what was asked, images included
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=file_bytes,
        state_session_capacity=20,
        allowed_paths=[],  # and `OnlyThePage` serves no file in the first place
        theme=theme,
        css=css,
        app_kwargs={
            "middleware": [Middleware(OnlyThePage)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    )
    return address


def wait_for_the_end() -> None:
    """Until Ctrl-C, SIGTERM or SIGHUP; the caller then deletes what there is."""
    end = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: end.set())
    while not end.wait(1.0):  # with a limit: signals reach a waiting main thread on Windows too
        pass
