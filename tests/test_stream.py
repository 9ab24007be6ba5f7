"""Streaming: the same training, whatever the sequence is read from."""

import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
import etrace.testing as et

STEPS = 23


@pytest.fixture
def problem():
    problem = et.make_problem(et.NetSpec((et.LayerSpec("gru", 3),)), length=STEPS)
    return problem.model, *map(np.asarray, (problem.inputs, problem.targets))


@pytest.fixture
def train():
    return etrace.learn(et.squared_error, optax.sgd(0.1), window=5)


def consumed(train, model, source, steps=10, **options):
    """(the trained parameters, all losses)."""
    algorithm = etrace.DRTRL(model)
    losses = []
    pieces = etrace.stream(train, algorithm, None, None, source, steps=steps, **options)
    for algorithm, *_, more in pieces:
        losses.append(np.asarray(more))
    return jax.tree.leaves(algorithm.model), np.concatenate(losses)


def same(a, b) -> bool:
    return all(map(jnp.allclose, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_equals_training_on_the_whole_sequence(problem, train):
    model, inputs, targets = problem
    algorithm, *_, losses = train(etrace.DRTRL(model), None, None, inputs, targets)
    got = consumed(train, model, (inputs, targets))
    assert got[1].shape == (5,)  # four windows of five steps, and one of three
    assert same(got, (jax.tree.leaves(algorithm.model), losses))


def test_reads_a_memory_map(problem, train, tmp_path):
    model, inputs, targets = problem
    maps = []
    for name, x in (("inputs", inputs), ("targets", targets)):
        np.save(tmp_path / f"{name}.npy", x)
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    expected = consumed(train, model, (inputs, targets))
    assert same(consumed(train, model, tuple(maps)), expected)


@pytest.mark.parametrize("sizes", [[1] * STEPS, [7, 16], [STEPS], [10, 10, 3]])
def test_an_iterator_may_yield_any_number_of_steps(problem, train, sizes):
    model, inputs, targets = problem
    ends = np.cumsum(sizes)
    pieces = ((inputs[e - s : e], targets[e - s : e]) for s, e in zip(sizes, ends))
    expected = consumed(train, model, (inputs, targets))
    assert same(consumed(train, model, pieces), expected)


def test_a_mask(problem, train):
    model, inputs, targets = problem
    mask = (np.arange(STEPS) % 3 > 0).astype(float)
    algorithm, *_ = train(etrace.DRTRL(model), None, None, inputs, targets, mask)
    got, _ = consumed(train, model, (inputs, targets, mask))
    assert same(got, jax.tree.leaves(algorithm.model))


def test_compiles_for_whole_pieces_and_for_the_last(problem, train):
    model, inputs, targets = problem
    calls = []

    def counted(outputs, targets):
        calls.append("loss")
        return et.squared_error(outputs, targets)

    train = etrace.learn(counted, optax.sgd(0.1), window=5)
    consumed(train, model, (inputs[:20], targets[:20]), steps=5)
    before = len(calls)
    consumed(train, model, (inputs[:20], targets[:20]), steps=5)
    assert len(calls) == before


def test_does_not_hold_what_it_has_read(train):
    """Of a long sequence no more than three pieces are alive at a time."""
    problem = et.make_problem(et.NetSpec((et.LayerSpec("gru", 3),)), length=2)
    alive: list[weakref.ref] = []
    most = 0

    def source():
        nonlocal most
        for _ in range(8):
            x = np.ones((10, *problem.inputs.shape[1:]))
            alive.append(weakref.ref(x))
            yield x, np.ones((10, *problem.targets.shape[1:]))
            del x
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))

    consumed(train, problem.model, source())
    assert most <= 3


def test_a_progress_bar(problem, train, capsys):
    model, inputs, targets = problem
    consumed(train, model, (inputs, targets), progress=True)
    shown = capsys.readouterr().err
    assert f"{STEPS}/{STEPS}" in shown and "loss=" in shown


def test_callbacks_see_every_piece(problem, train):
    model, inputs, targets = problem
    history = etrace.callbacks.History(
        size=lambda p: sum(x.size for x in jax.tree.leaves(p.algorithm.model)),
        hidden=lambda p: jax.tree.leaves(p.state[0])[0],
    )
    seen = []
    callbacks = [history, lambda p: seen.append(p.losses)]
    _, losses = consumed(train, model, (inputs, targets), callbacks=callbacks)
    assert history.steps == [10, 20, STEPS]
    assert np.array_equal(np.concatenate(seen), losses)
    means = [np.mean(losses[:2]), np.mean(losses[2:4]), losses[4]]
    assert history.values["loss"] == pytest.approx(means)
    assert len(set(history.values["size"])) == 1
    # Copies, although the memory of the state is used again.
    assert all(np.isfinite(h).all() for h in history.values["hidden"])


def test_callbacks_are_given_aux(problem):
    model, inputs, targets = problem
    loss = lambda y, t: (et.squared_error(y, t), jnp.sum(y))  # noqa: E731
    train = etrace.learn(loss, optax.sgd(0.1), window=5, has_aux=True)
    seen = []
    pieces = etrace.stream(
        train,
        etrace.DRTRL(model),
        None,
        None,
        (inputs, targets),
        steps=10,
        callbacks=[seen.append],
    )
    given = [losses for *_, losses in pieces]
    for piece, (losses, aux) in zip(seen, given, strict=True):
        assert piece.losses is losses and piece.aux is aux
    assert [p.aux.shape for p in seen] == [(10,), (10,), (3,)]


def test_a_callback_stops(problem, train):
    """The piece it stops at is trained on, and given."""
    model, inputs, targets = problem
    stops = [lambda p: p.step == 20, etrace.callbacks.History()]
    _, losses = consumed(train, model, (inputs, targets), callbacks=stops)
    assert losses.shape == (4,) and stops[1].steps == [10, 20]


def test_a_checkpoint_to_go_on_from(problem, train, tmp_path):
    model, inputs, targets = problem
    whole = consumed(train, model, (inputs, targets))
    save = etrace.callbacks.Checkpoint(tmp_path / "run", every=2)
    stop = lambda p: p.step == 20  # noqa: E731
    consumed(train, model, (inputs, targets), callbacks=[save, stop])
    algorithm = etrace.DRTRL(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    fresh = optax.sgd(0.1).init(params), algorithm.init(jnp.asarray(inputs[0])), 0
    algorithm, *state, step = etrace.restore(tmp_path / "run", (algorithm, *fresh))
    assert step == 20
    rest = (inputs[step:], targets[step:])
    ((algorithm, *_, losses),) = etrace.stream(train, algorithm, *state, rest, steps=10)
    assert np.array_equal(losses, whole[1][4:])
    trained = jax.tree.leaves(algorithm.model)
    assert all(map(np.array_equal, trained, whole[0]))


@pytest.mark.parametrize(
    ("losses", "pieces"),
    [
        ([5.0, 4.0, 3.0, 2.0], None),
        ([5.0, 4.0, 4.0, 4.0], 4),
        ([5.0, 4.95, 4.9, 3.0], 3),
        ([5.0, 6.0, 4.0, 6.0], None),
        ([5.0, np.nan, 4.0, 3.0], 2),
    ],
)
def test_early_stop(losses, pieces, problem):
    stop, algorithm = etrace.callbacks.EarlyStop(2, by=0.2), etrace.DRTRL(problem[0])
    found = [
        stop(etrace.callbacks.Progress(n, algorithm, None, None, jnp.asarray([x])))
        for n, x in enumerate(losses)
    ]
    assert (found.index(True) + 1 if any(found) else None) == pieces


MISTAKES = {
    "a callback": (
        dict(callbacks=etrace.callbacks.History()),
        TypeError,
        r"callbacks are a History; expected a list of functions",
    ),
    "no function": (
        dict(callbacks=[3]),
        TypeError,
        r"callbacks are a list; expected a list of functions",
    ),
    "no steps": (dict(steps=0), ValueError, "steps is 0; expected a positive int"),
    "an array": (
        dict(source=3.0),
        TypeError,
        r"source is a float.*expected a tuple \(inputs, targets\)",
    ),
    "no targets": (
        dict(source=(np.ones((4, 2)),)),
        ValueError,
        r"source holds a tuple of 1; expected \(inputs, targets\)",
    ),
    "lengths": (
        dict(source=(np.ones((4, 2)), np.ones((5, 2)))),
        ValueError,
        r"arrays of \[4, 5\] steps; expected one number of steps",
    ),
    "no time axis": (
        dict(source=(np.ones((4, 2)), np.ones(()))),
        TypeError,
        "expected arrays with a leading time axis",
    ),
    "arrays yielded": (
        dict(source=iter([np.ones((4, 2))])),
        TypeError,
        r"source yields an array.*expected tuples \(inputs, targets\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, problem, train):
    model, inputs, targets = problem
    options, error, message = MISTAKES[name]
    options = dict(source=(inputs, targets), steps=5) | options
    with pytest.raises(error, match=message):
        consumed(train, model, **options)
