"""The package as a whole: what importing it costs, and how its classes relate."""

import ast
import importlib
import inspect
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
from types import ModuleType

import etrace

# Rules are subclasses of these; whatever else has a subclass is abstract.
OPEN_BASES = {etrace.ETraceVjpAlgorithm}


def _python(source: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(etrace.__path__, f"{etrace.__name__}.")
    return [etrace, *(importlib.import_module(module.name) for module in found)]


def _classes() -> set[type]:
    return {
        cls
        for module in _modules()
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__.partition(".")[0] == etrace.__name__
    }


def _is_abstract(cls: type) -> bool:
    # Equinox lists fields declared by `eqx.AbstractVar` beside Python's own methods.
    fields = ("__abstractvars__", "__abstractclassvars__")
    return inspect.isabstract(cls) or any(getattr(cls, name, ()) for name in fields)


_CALLS = """
import sys

def calls(name):
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    __import__(name)
    sys.setprofile(None)
    return count

print(calls("equinox"), calls("etrace"))
"""


def test_import_is_cheap():
    """`import etrace` adds less than a quarter of what `import equinox` does.

    In function calls: a time would be that of the machine.
    """
    theirs, ours = map(int, _python(_CALLS).split())
    assert ours < theirs / 4


def test_import_needs_only_the_core_dependencies():
    source = "import etrace, json, sys; print(json.dumps(list(sys.modules)))"
    imported = {name.partition(".")[0] for name in json.loads(_python(source))}
    extras = {"beartype", "h5py", "hypothesis", "matplotlib", "nir", "optax", "pytest"}
    extras |= {"orbax", "sklearn", "tqdm"}
    assert "equinox" in imported
    assert not imported & extras


def test_import_starts_no_device():
    """No array is made on import, so users can still configure JAX after it.

    Starting a device would raise: there is no such platform.
    """
    _python("import etrace", JAX_PLATFORMS="nowhere")


def _imported(path: pathlib.Path) -> set[pathlib.Path]:
    """The files of the package that a file imports when it is loaded, or for types."""
    body = ast.parse(path.read_text()).body
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    found = set()
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(
                *(node.module or "").split(".")
            )
            for name in folder, *(folder / n.name for n in node.names):
                found.update(p for p in (name.with_suffix(".py"),) if p.exists())
            package = folder / "__init__.py"
            found.update([package] if node.module and package.exists() else [])
    return found - {path}


def test_no_imports_in_circles():
    root = pathlib.Path(etrace.__file__).parent
    left = {p: _imported(p) for p in root.rglob("*.py")}
    assert sum(map(len, left.values())) > 300
    while free := {p for p, needs in left.items() if needs.isdisjoint(left)}:
        left = {p: needs for p, needs in left.items() if p not in free}
    assert not left, sorted(str(p.relative_to(root)) for p in left)


def test_classes_are_abstract_or_final():
    """What has a subclass in the package is abstract: nothing concrete is refined."""
    refined = {
        base
        for cls in _classes()
        for base in cls.__bases__
        if base.__module__.partition(".")[0] == etrace.__name__
    }
    concrete = {base for base in refined - OPEN_BASES if not _is_abstract(base)}
    assert not concrete, f"concrete classes with subclasses: {concrete}"


def test_abstractness_is_recognised():
    """The test above sees both kinds of abstract class, and what is not one."""
    import abc

    import equinox as eqx

    class Method(eqx.Module):
        @abc.abstractmethod
        def method(self) -> None: ...

    class Field(eqx.Module):
        field: eqx.AbstractVar[int]

    class Leaf(Field):
        field: int

    assert _is_abstract(Method)
    assert _is_abstract(Field)
    assert not _is_abstract(Leaf)


# On PyPI, `etrace` is a package of somebody else.
_STRANGER = re.compile(
    r"pip install\s+(?:\S+\s+)?['\"]?etrace(?![\w-])|\betrace\[[a-z-]+\]"
)
_TEXTS = {".cfg", ".ipynb", ".md", ".py", ".sh", ".toml", ".yaml", ".yml", ""}


def test_nothing_installs_the_package_of_a_stranger():
    """The distribution is `etrace-jax`, wherever installing is spoken of."""
    root = pathlib.Path(etrace.__file__).parents[1]
    places = ["etrace", "tests", "docs", "notebooks", ".ci", *_files(root)]
    texts = [p for place in places for p in _below(root / place)]
    assert len(texts) > 100
    found = [
        f"{path.relative_to(root)}: {match[0]}"
        for path in texts
        for match in _STRANGER.finditer(path.read_text())
    ]
    assert not found, found


def _files(root: pathlib.Path) -> list[str]:
    return [p.name for p in root.iterdir() if p.is_file()]


def _below(place: pathlib.Path) -> list[pathlib.Path]:
    found = place.rglob("*") if place.is_dir() else [place]
    return [
        p
        for p in found
        if p.is_file()
        and p.suffix in _TEXTS
        and not {"site", "__pycache__"} & {*p.parts}
        and p != pathlib.Path(__file__)
    ]


def test_the_name_of_a_stranger_is_recognised():
    for text in ("pip install etrace", "pip install 'etrace[nir]'", "`etrace[plot]`"):
        assert _STRANGER.search(text), text
    for text in ("pip install 'etrace-jax[nir]'", "pip install .", "import etrace"):
        assert not _STRANGER.search(text), text
