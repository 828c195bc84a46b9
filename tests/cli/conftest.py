import pytest


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than the trainings of most tests; module fixtures of whole runs draw."""
    for name in ("plot_training_curves", "plot_reconstructions"):
        monkeypatch.setattr(f"sssd_hf.evaluation.plots.{name}", lambda *args: None)
    for name in ("write_figures", "write_explanations", "write_report"):
        monkeypatch.setattr(f"sssd_hf.cli.evaluate.{name}", lambda *args, **options: None)
