"""The faults: one line of the library each, such as a slip of the hand would leave."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault, and the tests that are asked first.

    - `file`: below `etrace`.
    - `old`, `new`: what is replaced, which the file has once, and by what.
    - `first`: test files that know of such things; the others are asked after them.
    """

    name: str
    file: str
    old: str
    new: str
    first: tuple[str, ...]


_RULES = ("tests/test_rules.py", "tests/test_rule_contracts.py")
_DRTRL = ("tests/test_drtrl.py", "tests/test_windows.py")
_ANALYSIS = ("tests/test_graph.py", "tests/test_constructs.py", "tests/fuzz")
_WILD = ("tests/wild",)

MUTANTS = (
    # ------------------------------------------------------------- what flows where
    Mutant(
        "labels that differ are joined to one of them",
        "_program/labels.py",
        "np.where(low == high, high, MIXED)",
        "np.where(low == high, high, low)",
        _ANALYSIS,
    ),
    Mutant(
        "what is blocked by one path is not, by another",
        "_program/labels.py",
        "clash = np.where(blocked, BLOCKED, MIXED)",
        "clash = np.where(blocked, result, MIXED)",
        _ANALYSIS,
    ),
    Mutant(
        "a cut is dropped",
        "_analysis/positions.py",
        "            if cut.any():\n                self.cuts[i, j] = cut",
        "            if cut.all():\n                self.cuts[i, j] = cut",
        _ANALYSIS,
    ),
    Mutant(
        "a leaf that another is computed from stays alone",
        "_analysis/positions.py",
        "pairs = partition.mergeable(label[other], own[other])",
        "pairs = None",
        _ANALYSIS,
    ),
    Mutant(
        "weights trace what they do to their own recurrence",
        "_analysis/positions.py",
        "own.update(_before_products(operations, own, moving))",
        "own.clear()",
        ("tests/wild/test_populations.py", *_WILD),
    ),
    Mutant(
        "every operation returns to the network that it reads",
        "_analysis/populations.py",
        "returning = {r.edge: r.old & ~heads.among(asked, r, opened) for r in of_old}",
        "returning = {r.edge: r.old for r in of_old}",
        ("tests/wild/test_populations.py", "tests/wild/test_twins.py", *_WILD),
    ),
    Mutant(
        "no leaf is taken apart",
        "_analysis/populations.py",
        "return Populations(returning, _parts(groups, opened, back))",
        "return Populations(returning, {})",
        ("tests/wild/test_populations.py", "tests/wild/test_twins.py", *_WILD),
    ),
    Mutant(
        "the state of another group is an exit as well",
        "_analysis/exits.py",
        "result |= own & self.positions.flows_into(g, outputs)",
        "result |= own & False",
        _RULES + _ANALYSIS,
    ),
    Mutant(
        "outputs are no exits",
        "_analysis/exits.py",
        "enumerate(program.outputs):\n            if v in self.labels:",
        "enumerate(program.outputs[1:], 1):\n            if v in self.labels:",
        _DRTRL,
    ),
    Mutant(
        "blocks run along the wrong axis of the result",
        "_program/primitives/reductions.py",
        "return [(d, n) for n, d in enumerate(equation.inputs[0].axes_but(removed))]",
        "found = [*equation.inputs[0].axes_but(removed)]\n"
        "    return list(zip(found, reversed(range(len(found)))))",
        _ANALYSIS,
    ),
    Mutant(
        "a sort is said to mix along no axis",
        "_program/primitives/reductions.py",
        'return _along(equation, [equation.params["dimension"]])',
        "return _along(equation, [])",
        (*_ANALYSIS, *_WILD),
    ),
    # ---------------------------------------------------- coordinates, reach, memory
    Mutant(
        "parts are put together in the order in which they were found",
        "_analysis/coordinates.py",
        'x = jnp.take(x, np.argsort(order), axis, mode="clip")',
        'x = jnp.take(x, order, axis, mode="clip")',
        ("tests/wild/test_twins.py", "tests/wild/test_populations.py", *_WILD),
    ),
    Mutant(
        "within n steps means n - 1",
        "_analysis/sparsity.py",
        "for step in range(1, n):",
        "for step in range(1, n - 1):",
        ("tests/test_snap.py",),
    ),
    Mutant(
        "traces are shared by uses in different groups",
        "_analysis/held.py",
        "key = spec.group, spec.components, positions.shape, positions.tobytes()",
        "key = spec.components, positions.shape, positions.tobytes()",
        ("tests/wild/test_substeps.py", *_RULES),
    ),
    Mutant(
        "a component that only the loss reads is forgotten",
        "_analysis/held.py",
        "if self.read[k] or any(self.depends[m, k] for m in g.leaves)",
        "if any(self.depends[m, k] for m in g.leaves)",
        (*_RULES, *_DRTRL, "tests/test_graph.py"),
    ),
    Mutant(
        "what a graph keeps does not depend on what it was asked",
        "_analysis/graph.py",
        "key = fun, *arguments",
        "key = (fun,)",
        ("tests/test_snap.py", "tests/test_rules.py"),
    ),
    Mutant(
        "one graph for all constants",
        "_analysis/cache.py",
        "value = None if eqx.is_inexact_array(leaf) else digest(leaf)",
        "value = None",
        ("tests/test_graph.py", "tests/test_rewiring.py"),
    ),
    # ------------------------------------------------------------------- derivatives
    Mutant(
        "the first of equal maxima has the whole derivative",
        "_program/corrections.py",
        "largest = (x == extreme) | (_named(search, x, axes) & ~jnp.isnan(extreme))",
        "largest = _named(search, x, axes) & ~jnp.isnan(extreme)",
        ("tests/wild/test_extrema.py", "tests/adversarial"),
    ),
    Mutant(
        "what a loop computes once depends on the round",
        "_program/loops.py",
        "            if reads <= same:",
        "            if reads <= rounds:",
        ("tests/wild/test_substeps.py", *_WILD),
    ),
    Mutant(
        "the old state passes where positions are mixed",
        "_step/propagation.py",
        "if kind is Kind.MIXING and i not in diagonals:",
        "if kind is Kind.STOP and i not in diagonals:",
        _DRTRL + _RULES,
    ),
    Mutant(
        "signals are put at the positions of another component",
        "_step/values.py",
        "leaf = take(rows[:, s], g.positions[s])",
        "leaf = take(rows[:, s], g.positions[0])",
        ("tests/wild/test_rings_and_delays.py", "tests/wild", "tests/fuzz"),
    ),
    Mutant(
        "the initial state has no parameters",
        "_analysis/graph.py",
        'first = arguments["other"][-1] if call.initial.hidden else None',
        "first = None",
        ("tests/test_initial_state.py",),
    ),
    # ------------------------------------------------------------ windows and traces
    Mutant(
        "a step is moved on by its own Jacobian",
        "_window.py",
        "return self.moved([p[1:] for p in propagators])",
        "return self.moved([p[:-1] for p in propagators])",
        _DRTRL,
    ),
    Mutant(
        "the trace is read after it was moved on",
        "_algorithm.py",
        "        gradients, _ = self._gradients(trace, ran, (cotangents, None))\n"
        "        new_trace = self._advanced(wait(trace, gradients), ran.window)",
        "        new_trace = self._advanced(trace, ran.window)\n"
        "        gradients, _ = self._gradients(new_trace, ran, (cotangents, None))",
        _DRTRL,
    ),
    Mutant(
        "a Jacobian is transposed",
        "_recursion.py",
        "if j == column and (row, i) in x",
        "if i == column and (row, j) in x",
        _DRTRL + _RULES,
    ),
    Mutant(
        "a ragged window repeats the last steps",
        "_windows.py",
        "sequence.part(whole * window, sequence.length)",
        "sequence.part(sequence.length - rest - 1, sequence.length - 1)",
        ("tests/test_windows.py",),
    ),
    Mutant(
        "masked steps are multiplied by zero",
        "_mask.py",
        "    return jnp.where(mask.astype(bool), product, jnp.zeros_like(product))",
        "    return product",
        ("tests/test_masks.py",),
    ),
    Mutant(
        "an optimiser goes down the conjugate",
        "_descent.py",
        "    gradient = jax.tree.map(jnp.conj, gradient)\n",
        "",
        ("tests/test_descent.py",),
    ),
    Mutant(
        "a shared trace takes what one of its uses adds",
        "_rules/_per_parameter.py",
        "return jnp.concatenate(f), jnp.concatenate(x)",
        "return f[0], x[0]",
        ("tests/wild/test_substeps.py",),
    ),
    # ------------------------------------------------------------------------- rules
    Mutant(
        "ESDRTRL: the correction is left out",
        "_rules/_factored_rule.py",
        "                f = f * scale.reshape(-1, 1, 1, 1).astype(dtype)\n",
        "",
        _RULES,
    ),
    Mutant(
        "ESDRTRL: now is counted twice",
        "_rules/_factored_rule.py",
        "at_sites[t] = None if t in whole or now is None else -now",
        "at_sites[t] = None",
        _RULES,
    ),
    Mutant(
        "e-prop: the filter begins a step late",
        "_rules/_emitted.py",
        "[self.kappa * self.at_positions(c, first) for c in components]",
        "[self.at_positions(c, first) for c in components]",
        _RULES,
    ),
    Mutant(
        "OTTT: what was before the window fades once less",
        "_rules/_ottt.py",
        "factored.outer(self.leak * later[0], x)",
        "factored.outer(later[0], x)",
        _RULES,
    ),
    Mutant(
        "OTTT: the sign of now",
        "_rules/_ottt.py",
        "later - now.astype(later.dtype)",
        "later + now.astype(later.dtype)",
        _RULES,
    ),
    Mutant(
        "RFLO: the derivative of the state in place of the leak",
        "_rules/_rflo.py",
        "        return self.leak\n",
        '        return "cut"\n',
        _RULES,
    ),
    Mutant(
        "UORO: the parameters are scaled as the state",
        "_rules/_uoro.py",
        "q / r0.astype(q.dtype) + x / r1.astype(q.dtype)",
        "q * r0.astype(q.dtype) + x / r1.astype(q.dtype)",
        ("tests/test_whole_step.py",),
    ),
    Mutant(
        "KF-RTRL: one sign for all pixels",
        "_rules/_kfrtrl.py",
        "sign = self._signs(now[s], (b, p), dtype)",
        "sign = jnp.broadcast_to(self._signs(now[s], (b, 1), dtype), (b, p))",
        ("tests/test_whole_step.py",),
    ),
    Mutant(
        "SnAp: columns are counted by rows",
        "_rules/_snap.py",
        "rows, b = block.rows, block.columns // o",
        "rows, b = block.rows, block.columns % len(x)",
        ("tests/test_snap.py", *_RULES),
    ),
    Mutant(
        "random feedback is sent back by the transpose of another exit",
        "_rules/_feedback.py",
        "key = jax.random.fold_in(self.key, n)",
        "key = self.key",
        ("tests/test_rule_options.py", *_RULES),
    ),
    Mutant(
        "adaptive feedback goes against the read-out",
        "_rules/_feedback.py",
        "jax.lax.stop_gradient(now - then).T",
        "jax.lax.stop_gradient(then - now).T",
        ("tests/test_rule_options.py", *_RULES),
    ),
    Mutant(
        "a modulator reaches every leaf at the positions of the first",
        "_rules/_three_factor.py",
        "at_leaf = take(values, group.positions[s])",
        "at_leaf = take(values, np.zeros_like(group.positions[s]))",
        ("tests/test_rule_options.py", "tests/test_rules.py"),
    ),
)
