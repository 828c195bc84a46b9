"""Who may import whom, what an import costs, and how long the model files may get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sssd_hf"
MODEL_FILES = (
    "configuration_sssd",
    "conversion_sssd",
    "distillation_sssd",
    "modeling_sssd",
    "products_sssd",
)
# part -> the parts that it may import, beside itself
ALLOWED = {
    "model": set(),
    "data": set(),
    "evaluation": set(),
    "training": {"model", "data"},
    "hub": {"model"},
    "cli": {"model", "data", "training", "evaluation", "hub", "package"},
    "package": {"model"},
}
# these alone of `evaluation` touch a model
TOUCH_A_MODEL = {"evaluation/explanations.py", "evaluation/probes.py"}
LIMITS = {"modeling_sssd": 400, "distillation_sssd": 150, "training/loop": 250}


def part_of(module):
    """The part of the house that a dotted module name of the package belongs to."""
    first = module.split(".")[1] if "." in module else ""
    if first in MODEL_FILES:
        return "model"
    return first if first in ALLOWED else "package"


def imported_modules(path):
    """Dotted names of what a file imports, relative ones resolved, wherever in the file."""
    package = ["sssd_hf", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            if node.module is None or name == "sssd_hf":  # from . import x
                yield from (f"{name}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    relative = path.relative_to(PACKAGE)
    own = part_of(".".join(["sssd_hf", *relative.with_suffix("").parts]))
    if relative == Path("__init__.py"):
        own = "package"
    allowed = ALLOWED[own] | {own}
    if str(relative) in TOUCH_A_MODEL:
        allowed |= {"model"}
    for name in imported_modules(path):
        if name.split(".")[0] == "sssd_hf" and name != "sssd_hf":
            assert part_of(name) in allowed, f"{relative} imports {name}"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_model_file_can_travel(name):
    """Remote code: flat siblings by `from .name import ...`, nothing else of ours or of others."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    outside = {"torch", "transformers", "safetensors"} | set(sys.stdlib_module_names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] in outside for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in outside, node.module
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1
            assert node.module in MODEL_FILES, node.module
            assert node in tree.body  # at the top, where the loader looks for it


def code_lines(source):
    """Lines that are neither blank nor comment nor docstring."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                documented |= set(range(first.lineno, first.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(
        1
        for number, line in lines
        if number not in documented and line.strip() and not line.strip().startswith("#")
    )


def test_code_lines_are_counted_rightly():
    assert (
        code_lines('"""a\nb"""\n\n# c\nx = 1  # d\ndef f():\n    """e"""\n    return """\n"""\n')
        == 4
    )


@pytest.mark.parametrize("name", LIMITS)
def test_a_file_to_read_first_can_be_read_in_one_go(name):
    assert code_lines((PACKAGE / f"{name}.py").read_text()) <= LIMITS[name]


CHILD = """
import sys
import transformers
from transformers import PreTrainedModel, ViTForImageClassification, ViTMAEForPreTraining
before = set(sys.modules)
import sssd_hf
new = {name.split(".")[0] for name in set(sys.modules) - before} - {"sssd_hf"}
heavy = {"datasets", "sklearn", "matplotlib", "pandas", "evaluate", "torchvision", "timm"}
print("NEW", sorted(new - set(sys.stdlib_module_names)), sorted(heavy & set(sys.modules)))
"""


@pytest.mark.slow
def test_importing_the_package_costs_no_more_than_transformers(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    (line,) = [line for line in child.stdout.splitlines() if line.startswith("NEW")]
    assert line == "NEW [] []"
