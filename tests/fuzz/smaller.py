"""Smaller step functions of the same kind, to find what a failure needs."""

from collections.abc import Callable, Iterator

from .programs import Spec, nodes_of


def smaller(spec: Spec) -> Iterator[Spec]:
    """Variants with one value fewer."""
    if len(spec.outputs) > 1:
        for n in range(len(spec.outputs)):
            yield pruned(_with(spec, outputs=spec.outputs[:n] + spec.outputs[n + 1 :]))
    shapes = [(v.shape, v.dtype) for v in nodes_of(spec).numbered]
    for n in reversed(range(spec.given, len(shapes))):
        name, _, operands = spec.steps[n - spec.given]
        if name != "param":
            for other in dict.fromkeys((*operands, *range(n))):
                if shapes[other] == shapes[n]:
                    yield pruned(_replaced(spec, n, other))


def shrunk(spec: Spec, fails: Callable[[Spec], bool], attempts: int = 100) -> Spec:
    """A smaller one that still fails."""
    for _ in range(attempts):
        found = (
            s
            for s in smaller(spec)
            if len(s.steps) < len(spec.steps) or s.outputs != spec.outputs
        )
        better = next((s for s in found if fails(s)), None)
        if better is None:
            return spec
        spec = better
    return spec


def pruned(spec: Spec) -> Spec:
    """Without the steps that nothing reads."""
    needed, kept = {*spec.new, *spec.outputs}, []
    for k in reversed(range(len(spec.steps))):
        if spec.given + k in needed:
            needed.update(spec.steps[k][2])
            kept.append(k)
    numbers = {n: n for n in range(spec.given)}
    for place, k in enumerate(reversed(kept)):
        numbers[spec.given + k] = spec.given + place
    steps = [spec.steps[k] for k in reversed(kept)]
    return _with(
        spec,
        steps=tuple((n, c, tuple(numbers[i] for i in o)) for n, c, o in steps),
        new=tuple(numbers[n] for n in spec.new),
        outputs=tuple(numbers[n] for n in spec.outputs),
    )


def _replaced(spec: Spec, old: int, new: int) -> Spec:
    def name(n: int) -> int:
        return new if n == old else n

    steps = tuple((n, c, tuple(map(name, o))) for n, c, o in spec.steps)
    return _with(
        spec,
        steps=steps,
        new=tuple(map(name, spec.new)),
        outputs=tuple(map(name, spec.outputs)),
    )


def _with(spec: Spec, **changes) -> Spec:
    return Spec(
        **{
            **{
                k: getattr(spec, k)
                for k in ("leaves", "steps", "new", "outputs", "seed")
            },
            **changes,
        }
    )
