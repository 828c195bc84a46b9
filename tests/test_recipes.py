"""Every recipe is understood by every script it has a section for, and is short."""

from pathlib import Path

import pytest
import yaml

from sssd_hf.cli.arguments import SCRIPTS
from sssd_hf.cli.parsing import as_dict, parse

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_understood(path):
    recipe = yaml.safe_load(path.read_text())
    for script in set(SCRIPTS) - {"reproduce"}:  # its section is a plan, see test_reproduce.py
        values = as_dict(*parse(script, "", ["--recipe", str(path)]))
        for name, value in {**recipe["common"], **recipe.get(script, {})}.items():
            if name in values:
                assert values[name] == value, f"{script}: --{name}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_short_and_says_its_command(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert text.startswith("#")
    assert "Expected" in text


def test_there_are_recipes():
    assert RECIPES
