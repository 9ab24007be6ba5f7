"""The documentation keeps up with the package: every name is there, and runs."""

import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest

PAGES = Path(__file__).parent.parent / "docs" / "pages"
MODULES = [
    "etrace",
    "etrace.callbacks",
    "etrace.nir",
    "etrace.nn",
    "etrace.plot",
    "etrace.testing",
    "etrace.testing.rules",
]


def _public(module_name: str) -> set[str]:
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", None)
    if names is None:  # a module of `from ._x import X as X` lines and nothing else
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and not inspect.ismodule(value)
        ]
    return {f"{module_name}.{name}" for name in names}


def _documented() -> list[str]:
    pages = (
        page.read_text(encoding="utf-8")
        for page in sorted((PAGES / "api").glob("*.md"))
    )
    return re.findall(r"^::: (\S+)$", "\n".join(pages), flags=re.MULTILINE)


@pytest.mark.parametrize("module_name", MODULES)
def test_public_names_are_documented(module_name):
    module = importlib.import_module(module_name)
    missing = _public(module_name) - set(_documented())
    # A second name of what is documented under its own.
    missing = {n for n in missing if not _is_alias(module, n.rpartition(".")[2])}
    assert not missing, f"add to a page in docs/pages/api: {sorted(missing)}"


def test_documented_names_are_public():
    public = set().union(*(_public(name) for name in MODULES))
    unknown = set(_documented()) - public
    assert not unknown, f"in docs/pages/api, but not public: {sorted(unknown)}"


def test_names_are_documented_once():
    documented = _documented()
    assert len(documented) == len(set(documented))


def _is_alias(module: object, name: str) -> bool:
    value = getattr(module, name)
    return inspect.isclass(value) and value.__name__ != name


def _own_docstring(value: object) -> str:
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    # A dataclass without a docstring is given its signature in place of one.
    automatic = f"{getattr(value, '__name__', '')}("
    return "" if not doc or doc.startswith(automatic) else doc


@pytest.mark.parametrize("module_name", MODULES)
def test_public_names_have_docstrings(module_name):
    module = importlib.import_module(module_name)
    bare = [
        name
        for name in sorted(_public(module_name))
        if not _own_docstring(getattr(module, name.rpartition(".")[2]))
    ]
    assert not bare, f"without a docstring of their own: {bare}"


def _examples() -> dict[str, str]:
    """The Python blocks of each page that has any, top to bottom, as one program."""
    block = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    programs = {
        page.relative_to(PAGES).as_posix(): "\n".join(
            block.findall(page.read_text(encoding="utf-8"))
        )
        for page in sorted(PAGES.rglob("*.md"))
    }
    return {page: program for page, program in programs.items() if program}


# Pages that need what cannot be had everywhere: third-party in pyproject.toml.
OPTIONAL = {"exchange.md": "tonic"}


@pytest.mark.parametrize("page", _examples())
def test_examples_run(page):
    if page in OPTIONAL:
        pytest.importorskip(OPTIONAL[page])
    program = compile(_examples()[page], page, "exec")
    with jax.numpy_dtype_promotion("standard"):  # optax needs it, as users have it
        exec(program, {"__name__": "__main__"})
