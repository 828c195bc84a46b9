"""The tables, figures and cards of recipes/results and model_cards are those of their records."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from sssd_hf.cli import reproduce

RECIPES = Path(__file__).parents[2] / "recipes"


def assert_same(first, second):
    """The same figures, up to the order in which a processor adds."""
    if isinstance(first, dict):
        assert list(first) == list(second)
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list):
        assert len(first) == len(second)
        for pair in zip(first, second):
            assert_same(*pair)
    else:
        assert first == (pytest.approx(second) if isinstance(first, float) else second)


def without_metadata(card):
    return card.split("\n---\n")[1]


STUDIES = sorted(path.stem for path in (RECIPES / "results").glob("*.json"))


@pytest.mark.parametrize("study", STUDIES)
def test_records_that_are_published_are_of_their_recipe(study, tmp_path, monkeypatch):
    """They are older than some of what a record has now."""
    for script in (reproduce.cross_validate, reproduce.pretrain):
        monkeypatch.setattr(script, "main", pytest.fail)  # nothing is trained
    recipe = RECIPES / f"{study}.yaml"
    results = tmp_path / "results"
    shutil.copytree(RECIPES / "results" / recipe.stem, results / recipe.stem)
    options = ["--results_dir", str(results), "--cards_dir", str(tmp_path), "--tables_only", "true"]
    assert reproduce.main(["--recipe", str(recipe), *options]) == 0
    written = (results / f"{study}.md").read_text()
    assert written == (RECIPES / f"results/{study}.md").read_text()
    figures = [
        json.loads((d / f"{study}.json").read_text()) for d in (results, RECIPES / "results")
    ]
    assert_same(*figures)
    cards = [(d / f"{study}.md").read_text() for d in (tmp_path, RECIPES.parent / "model_cards")]
    assert without_metadata(cards[0]) == without_metadata(cards[1])
    content = yaml.safe_load(recipe.read_text())
    content["finetune"]["learning_rate"] = 0.01
    other = tmp_path / recipe.name
    other.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match=r"learning_rate \(finetune\): 0.0005 -> 0.01"):
        reproduce.main(["--recipe", str(other), *options])
