"""The program of a step as it is printed, and the page of the documentation that says
how the analysis works, with its output."""

import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "analysis.md"


def test_the_page_shows_what_is_printed():
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    assert [kind for kind, _ in blocks] == ["python", "text"] * (len(blocks) // 2)
    program = "\n".join(text for kind, text in blocks if kind == "python")
    run = f"exec(compile({program!r}, 'net.py', 'exec'), {{'__name__': 'net'}})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", run],
        capture_output=True,
        text=True,
        cwd=PAGE.parents[2],
        check=True,
    )
    assert done.stdout == "".join(text for kind, text in blocks if kind == "text")


class Net(eqx.Module):
    w: jax.Array
    mask: jax.Array

    def init_state(self):
        return {"h": jnp.zeros(4), "other": jnp.zeros(4), "n": jnp.zeros((), int)}

    def __call__(self, state, x):
        h = 0.5 * state["h"] + jnp.tanh(self.w @ x) * (self.mask > 1).astype(x.dtype)
        other = 0.5 * state["other"] + 0.1 * jnp.roll(h, 1) + jnp.cumsum(h)
        h = h + 0.1 * jnp.roll(h, 1)
        new = {"h": h, "other": other, "n": state["n"] + 1}
        return jax.lax.stop_gradient(other), new


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    model = Net(jnp.ones((4, 2)), jnp.arange(4))
    algorithm = etrace.DRTRL(model, position_size=1)
    text = algorithm.graph(jnp.zeros(2)).program.splitlines()
    starts = [m.start() for m in re.finditer(r"(?:(?<=  )|^)\S", text[0])]
    heads = [text[0][a:].split("  ")[0] for a in starts]
    spans = list(zip(starts, [*starts[1:], None]))
    return [
        {h: line[a:b].strip() for h, (a, b) in zip(heads, spans)} for line in text[2:]
    ]


def one(lines: list[dict[str, str]], start: str) -> dict[str, str]:
    (found,) = (line for line in lines if start in line["equation"])
    return found


def test_lines_say_what_becomes_of_positions(lines):
    assert lines[0]["equation"] == "state['h']: f64[4]"
    assert lines[0]["belongs to"] == "0"
    assert lines[0]["flows into"] == "0 by several"
    assert one(lines, "(.w, inputs[0])")["here"] == "site of .w (trace 0)"
    assert one(lines, "= stop_gradient")["does"] == "stop"
    assert one(lines, "= cumsum")["does"] == "mixing"
    assert "own recurrence" in one(lines, "= cumsum")["here"]
    assert one(lines, "new state['h']:")["flows into"] == "0"
    assert any("cut:" in line["here"] for line in lines)
    assert lines[-1]["equation"].startswith("return ")
    assert "exit of 0: new state['h']" in lines[-1]["here"]


class Noisy(Net):
    key: jax.Array

    def __call__(self, state, x):
        outputs, state = super().__call__(state, x)
        fixed = jax.random.key(3)  # no number to print
        return outputs + jax.random.normal(fixed, (4,)), state


def test_keys_are_no_numbers():
    model = Noisy(jnp.ones((4, 2)), jnp.arange(4), jax.random.key(1))
    assert "random" in etrace.DRTRL(model).graph(jnp.zeros(2)).program
