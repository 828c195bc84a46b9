import socket

import pytest
from loopback import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The loopback server as the Hub of the client in this process, logged in; without waiting."""
    with Hub() as server:
        use_hub(monkeypatch, server.url, tmp_path)
        yield server


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    use_hub(monkeypatch, url, tmp_path)
    return url


def use_hub(monkeypatch, url, tmp_path):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http as http
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has LFS alone
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # the client's own back-off waits for up to 23 s
    base = http._http_backoff_base
    monkeypatch.setattr(
        http,
        "_http_backoff_base",
        lambda *args, **kw: base(*args, **{**kw, "base_wait_time": 0, "max_wait_time": 0}),
    )
    monkeypatch.setattr("sssd_hf.hub.push.FIRST_PAUSE", 0.0)
