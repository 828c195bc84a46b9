"""Every form of export in stock loaders of other releases, each in an environment of its own."""

import subprocess

import loaders
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("environment", loaders.ENVIRONMENTS)
def test_an_export_answers_alike_in_a_foreign_loader(tmp_path, tmp_path_factory, environment):
    try:
        loaders.make_environment(tmp_path / "environments", environment)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the package index does not give {loaders.ENVIRONMENTS[environment]}: {error}")
    lines = loaders.measure(tmp_path / "environments", tmp_path, [environment])
    assert lines
    for form, model, loader, version, difference in lines:
        assert float(difference) < 1e-4, (form, model, loader, version)
