"""Learning rules as recursions over dense matrices, for
[`etrace.testing.rule_reference`][].

All of them *regard the exits u of a step as further states*: with R_t the trace at the
exits, which is what the rule says it is, the gradient is

    now_t  +  Σ_u (λ'_u R_u,t - λ_u du/dθ),    λ_u = ∂L_t/∂u,

du/dθ with all marks stopped and λ' = λ unless there is feedback. So a rule is how the
trace moves and what R is. The names are those of an `Observation`: D, I = ∂h/∂h_old,
∂h/∂θ at the states, E, J at the exits; f, X, W = ∂h/∂z or ∂u/∂z, ∂z/∂w, ∂w/∂θ at the
sites.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._groups import traced_columns
from ._observe import Observation
from ._rule import AbstractRule, Matrix, fed_back, filtered, support

__all__ = [
    "DRTRL",
    "EProp",
    "ESDRTRL",
    "FactoredOTPE",
    "OSTL",
    "OTPE",
    "OTTT",
    "RFLO",
    "SnAp",
    "ThreeFactor",
]


class DRTRL(AbstractRule):
    """D-RTRL: M = D M + I; R = E M_old + J.

    ??? cite "Reference"

        Wang et al., Nature Communications 17:1745, 2026.
    """

    def zero(self, o: Observation) -> Matrix:
        return jnp.zeros_like(o.i)

    def advance(self, trace: Matrix, o: Observation) -> tuple[Matrix, Matrix]:
        return o.e @ trace + o.j, o.d @ trace + o.i

    def influence(self, trace: Matrix, o: Observation) -> Matrix:
        return trace


class OSTL(AbstractRule):
    """D-RTRL whose D and E are, from a position to itself, those of the group with its
    recurrence: the marks that feed it open.

    **Arguments:**

    - `recurrent`: if False, D-RTRL.

    ??? cite "Reference"

        Bohnstingl et al., IEEE TNNLS, 2022, arXiv:2007.12723.
    """

    recurrent: bool = eqx.field(static=True, default=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(["within"] if self.recurrent else [])

    def zero(self, o: Observation) -> Matrix:
        return jnp.zeros_like(o.i)

    def advance(self, trace: Matrix, o: Observation) -> tuple[Matrix, Matrix]:
        d, e = o.d, o.e
        if o.own_d is not None and o.own_e is not None:
            hidden, exits = o.facts.hidden, o.facts.exits
            d = jnp.where(hidden.same(hidden), o.own_d, 0)
            e = jnp.where(exits.same(hidden), o.own_e, 0)
        return e @ trace + o.j, d @ trace + o.i

    def influence(self, trace: Matrix, o: Observation) -> Matrix:
        return trace


class ESDRTRL(AbstractRule):
    """Per site, ε_x = α_x ε_x + X and ε_f = α_f D ε_f + (1 - α_f) f_h;
    R = Σ (α_f E ε_f,old + (1 - α_f) f_u) ε_x W / (1 - α_f^t) at step t = 1, 2, ….

    Elementwise sites, and those that are not to be factored, follow D-RTRL.

    **Arguments:**

    - `decay`: α, or the pair (α_x, α_f).
    - `factored`: the parameters whose sites are factored: a filter specification, or a
        function from the model to them. All by default.

    ??? cite "Reference"

        Wang et al., Nature Communications 17:1745, 2026.
    """

    decay: tuple[float, float] = eqx.field(static=True)
    factored: Any

    def __init__(
        self, decay: float | tuple[float, float], factored: Any = True
    ) -> None:
        self.decay = decay if isinstance(decay, tuple) else (decay, decay)
        self.factored = factored

    def bound(self, model: Any) -> AbstractRule:
        chosen = 1 - traced_columns(model, self.factored)
        return eqx.tree_at(lambda r: r.factored, self, chosen)

    def zero(self, o: Observation) -> PyTree:
        def of_site(s: Any) -> tuple[Array, ...]:
            return jnp.zeros_like(s.x), jnp.zeros_like(s.f_h), jnp.zeros_like(o.i)

        return jnp.zeros((), o.i.dtype), tuple(of_site(s) for s in o.sites)

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        (steps, parts), (ax, af) = trace, self.decay
        steps, r, new = steps + 1, jnp.zeros_like(o.j), []
        for s, (x, f, m), factored in zip(o.sites, parts, self._which(o), strict=True):
            x = ax * x + s.x
            at_exits = (af * o.e @ f + (1 - af) * s.f_u) @ x @ s.w / (1 - af**steps)
            exact = o.e @ m + s.f_u @ s.x @ s.w
            r = r + jnp.where(factored, at_exits, exact)
            f = af * o.d @ f + (1 - af) * s.f_h
            new.append((x, f, o.d @ m + s.f_h @ s.x @ s.w))
        return r, (steps, tuple(new))

    def influence(self, trace: PyTree, o: Observation) -> Matrix:
        steps, parts = trace
        share = jnp.where(steps == 0, 1, 1 - self.decay[1] ** steps)
        total = jnp.zeros_like(o.i)
        for s, (x, f, m), factored in zip(o.sites, parts, self._which(o), strict=True):
            total = total + jnp.where(factored, f @ x @ s.w / share, m)
        return total

    def _which(self, o: Observation) -> list[Any]:
        pairs = zip(o.sites, o.facts.elementwise, strict=True)
        return [
            False if elementwise else jnp.any(s.w @ self.factored != 0)
            for s, elementwise in pairs
        ]


class EProp(AbstractRule):
    """M as in D-RTRL; at exits into the new state of another group
    R = κ R_old + E M_old + J.

    **Arguments:**

    - `kappa`: κ.
    - `feedback`: None, or a matrix `[exits at marks, outputs]` that takes ∂L_t/∂y to
        the λ' of the exits at marks, in order of call; exits that are outputs keep λ.

    ??? cite "Reference"

        Bellec et al., Nature Communications 11:3625, 2020.
    """

    kappa: float = eqx.field(static=True, default=0.0)
    feedback: Matrix | None = None

    def zero(self, o: Observation) -> PyTree:
        return jnp.zeros_like(o.i), jnp.zeros_like(o.j)

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        into_group = [bool(feeds) for feeds in o.facts.feeds]
        return filtered(trace, o, self.kappa, into_group)

    def signal(self, o: Observation) -> Float[Array, " U"]:
        return fed_back(self.feedback, o)


class OTPE(AbstractRule):
    """M as in D-RTRL; at exits into any mixing operation R = λ R_old + E M_old + J.

    **Arguments:**

    - `leak`: λ.

    ??? cite "Reference"

        Summe et al., arXiv:2311.16151, 2023.
    """

    leak: float = eqx.field(static=True)

    def zero(self, o: Observation) -> PyTree:
        return jnp.zeros_like(o.i), jnp.zeros_like(o.j)

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        return filtered(trace, o, self.leak, o.facts.at_mark)


class FactoredOTPE(AbstractRule):
    """Per site, x_1 = λ x_1 + X, x_2 = λ x_2 + x_1, and g the mean of f_u over the past
    with weights λ^age; R = Σ g x_2 W at exits into mixing operations, Σ f_u x_1 W at
    exits that are outputs.

    **Arguments:**

    - `leak`: λ.

    ??? cite "Reference"

        Summe et al., arXiv:2311.16151, 2023.
    """

    leak: float = eqx.field(static=True)

    def zero(self, o: Observation) -> PyTree:
        def of_site(s: Any) -> tuple[Array, ...]:
            return jnp.zeros_like(s.x), jnp.zeros_like(s.x), jnp.zeros_like(s.f_u)

        return jnp.zeros((), o.i.dtype), tuple(of_site(s) for s in o.sites)

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        mass, parts = trace
        mass, r, new = self.leak * mass + 1, jnp.zeros_like(o.j), []
        at_mark = jnp.array(o.facts.at_mark, bool)[:, None]
        for s, (x1, x2, g) in zip(o.sites, parts, strict=True):
            x1 = self.leak * x1 + s.x
            x2 = self.leak * x2 + x1
            g = self.leak * g + s.f_u
            r = r + jnp.where(at_mark, g / mass @ x2, s.f_u @ x1) @ s.w
            new.append((x1, x2, g))
        return r, (mass, tuple(new))


class OTTT(AbstractRule):
    """Per site, x̂ = λ x̂ + X; R = Σ f_u x̂ W.

    **Arguments:**

    - `leak`: λ.

    ??? cite "Reference"

        Xiao et al., NeurIPS 2022, arXiv:2210.04195.
    """

    leak: float = eqx.field(static=True)

    def zero(self, o: Observation) -> PyTree:
        return tuple(jnp.zeros_like(s.x) for s in o.sites)

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        pairs = zip(trace, o.sites, strict=True)
        new = tuple(self.leak * x + s.x for x, s in pairs)
        r = jnp.zeros_like(o.j)
        for x, s in zip(new, o.sites, strict=True):
            r = r + s.f_u @ x @ s.w
        return r, new


class RFLO(AbstractRule):
    """D-RTRL with D = leak: M = leak M + I; R = E' M_old + J, where E' takes the new
    state n to depend on the old one with the derivative `leak`.

    **Arguments:**

    - `leak`: what of the state is retained.
    - `feedback`: as in [`etrace.testing.rules.EProp`][].

    ??? cite "Reference"

        Murray, eLife 8:e43299, 2019.
    """

    leak: float = eqx.field(static=True)
    feedback: Matrix | None = None

    def zero(self, o: Observation) -> Matrix:
        if not o.facts.single:
            raise ValueError("RFLO needs groups with one number per neuron.")
        return jnp.zeros_like(o.i)

    def advance(self, trace: Matrix, o: Observation) -> tuple[Matrix, Matrix]:
        e = self.leak * o.through + (o.e - o.through @ o.d)
        return e @ trace + o.j, self.leak * trace + o.i

    def signal(self, o: Observation) -> Float[Array, " U"]:
        return fed_back(self.feedback, o)


class SnAp(AbstractRule):
    """M = mask(∂h/∂h_old M + ∂h/∂w), nothing stopped, in columns of weight elements w;
    R = mask(E M_old) W + J with E = ∂u/∂h_old of the exit's group, its recurrence open.

    The mask holds the positions that a weight element reaches locally, and those that
    these reach in n - 1 further steps by the structure of ∂h/∂h_old, the first of them
    together with what ∂h/∂w reaches by other ways: wherever they differ from zero in
    the sequence or in one of a few random models and sequences.

    ??? cite "Reference"

        Menick et al., ICLR 2021, arXiv:2006.07232.
    """

    n: int = eqx.field(static=True, default=1)

    @property
    def draws(self) -> int:
        return 3

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(["within", "full"])

    def start(self, trace: PyTree, seen: Sequence[Observation]) -> PyTree:
        # What an earlier part of the sequence reached counts as well.
        pairs = zip(trace[1], self._reach(seen), strict=True)
        return trace[0], tuple(jnp.maximum(a, b) for a, b in pairs)

    def _reach(self, seen: Sequence[Observation]) -> list[Matrix]:
        """1 where a weight element reaches a state element, `[H, W]` for every site."""
        hidden = seen[0].facts.hidden
        step = support([o.full for o in seen])
        spread = jnp.asarray(hidden.same(hidden), step.dtype)
        result = []
        for s in range(len(seen[0].sites)):
            reach = spread @ support([o.sites[s].f_h @ o.sites[s].x for o in seen])
            other = support([o.full_w[s] for o in seen if o.full_w is not None])
            for further in range(min(self.n - 1, len(spread))):
                reach = reach + step @ reach + (other if further == 0 else 0)
                reach = support([spread @ reach])
            result.append(support([reach]))
        return result

    def zero(self, o: Observation) -> PyTree:
        zeros = tuple(map(jnp.zeros_like, o.full_w or ()))
        return zeros, zeros

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        assert o.own_e is not None and o.full is not None and o.full_w is not None
        at_exit = jnp.asarray(o.facts.exits.same(o.facts.hidden), o.i.dtype)
        r, new = o.j, []
        for s, m, reach, immediate in zip(o.sites, *trace, o.full_w, strict=True):
            r = r + (support([at_exit @ reach]) * (o.own_e @ m)) @ s.w
            new.append(reach * (o.full @ m + immediate))
        return r, (tuple(new), trace[1])

    def influence(self, trace: PyTree, o: Observation) -> Matrix:
        total = jnp.zeros_like(o.i)
        for s, m in zip(o.sites, trace[0], strict=True):
            total = total + m @ s.w
        return total


class ThreeFactor(AbstractRule):
    """The gradient is now - Σ λ J + m M, with M of another rule, new states and
    immediate parts included, and a modulator m.

    **Arguments:**

    - `rule`: what says how M moves.

    ??? cite "Reference"

        Gerstner et al., Frontiers in Neural Circuits 12:53, 2018.
    """

    rule: AbstractRule = DRTRL()

    @property
    def draws(self) -> int:
        return self.rule.draws

    @property
    def needs(self) -> frozenset[str]:
        return self.rule.needs

    def bound(self, model: Any) -> AbstractRule:
        return ThreeFactor(self.rule.bound(model))

    def start(self, trace: PyTree, seen: Sequence[Observation]) -> PyTree:
        return self.rule.start(trace, seen)

    def zero(self, o: Observation) -> PyTree:
        return self.rule.zero(o)

    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        return self.rule.advance(trace, o)

    def gradient(
        self, trace: PyTree, o: Observation, modulator: Array | None
    ) -> tuple[Float[Array, " n"], PyTree]:
        if modulator is None:
            raise ValueError("ThreeFactor needs a modulator.")
        _, new = self.rule.advance(trace, o)
        m = self.rule.influence(new, o)
        return o.now - o.signal @ o.j + modulator @ m, new
