"""Descriptions: the same in every process, and no two values alike."""

import dataclasses
import enum
import functools
import json
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etrace
from etrace._checkpoint import describe

from ..rules import RULES
from . import worker
from .states import example_of, full, start
from .worker import Net, training


def every_description() -> dict[str, dict[str, str]]:
    found = {rule: describe(training(*example_of(rule))) for rule in RULES}
    return found | {"full": describe(full()), "odd": describe(odd_values())}


class Colour(enum.Enum):
    RED = 1


class Odd(eqx.Module):
    value: Any = eqx.field(static=True)


@dataclasses.dataclass(frozen=True)
class Table:
    numbers: np.ndarray


@jax.tree_util.register_static
class Constant:
    def __repr__(self) -> str:
        return "a constant"


def odd_values() -> list[Any]:
    values = [
        {"spam", "eggs", "ham", "bacon", "sausage"},
        frozenset({("b", 1), ("a", 2)}),
        functools.partial(np.sum, axis=(0, 1)),
        lambda x: x,
        object(),
        [object(), len],
        Colour.RED,
        Table(np.arange(3)),
        np.dtype("float32"),
        jnp.float32,
        Constant,
        {"b": 1, "a": (2.5, None)},
    ]
    partial = jax.tree_util.Partial(worker.loss, jnp.ones(2))
    return [Constant(), partial, *map(Odd, values)]


def test_the_same_in_another_process():
    """There strings have other hashes, and objects other addresses."""
    own = every_description()
    code = "import json, tests.checkpoint.test_described as t"
    code += "; print(json.dumps(t.every_description()))"
    process = start(code, PYTHONHASHSEED="1")
    output, _ = process.communicate()
    assert json.loads(output.splitlines()[-1]) == own
    assert not re.findall(r"0x[0-9a-f]{6}", str(own))


def test_odd_values_are_told_apart():
    found = describe(odd_values())
    assert found["[0]"] == "a constant"
    assert found["[1]<static>"] == "tests.checkpoint.worker.loss"
    values = {k: v for k, v in found.items() if ".value" in k}
    numbers = values.pop("[9].value.numbers")
    assert re.fullmatch(r"int64\[3\] sha256:\w{16}", numbers)
    assert values == {
        "[2].value": "{'bacon', 'eggs', 'ham', 'sausage', 'spam'}",
        "[3].value": "{('a', 2), ('b', 1)}",
        "[4].value": "functools.partial",
        "[4].value.func": "numpy.sum",
        "[4].value.args": "()",
        "[4].value.keywords": "dict",
        "[4].value.keywords['axis']": "(0, 1)",
        "[5].value": "tests.checkpoint.test_described.odd_values.<locals>.<lambda>",
        "[6].value": "<object object>",
        "[7].value": "list",
        "[7].value[0]": "<object object>",
        "[7].value[1]": "len",
        "[8].value": "<Colour.RED: 1>",
        "[9].value": "tests.checkpoint.test_described.Table",
        "[10].value": "dtype('float32')",
        "[11].value": "jax.numpy.float32",
        "[12].value": "tests.checkpoint.test_described.Constant",
        "[13].value": "dict",
        "[13].value['a']": "(2.5, None)",
        "[13].value['b']": "1",
    }


def test_modules_may_be_rearranged():
    """Private ones are left out of names."""
    assert describe(etrace.DRTRL(Net()))[""] == "etrace.DRTRL"
