"""Two tasks that need memory, as batches of sequences made from a random key.

Both are pure functions of JAX: call them inside `jax.jit`, sizes being Python numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Sequences(NamedTuple):
    """Time-major sequences, as the drivers of `etrace` take them."""

    inputs: Float[Array, "time batch inputs"]
    targets: Int[Array, "time batch"]
    mask: Float[Array, " time"]  # one where an answer is asked for, else zero


GROUP = 10  # neurons for each of the four kinds of input


def evidence_accumulation(
    key: PRNGKeyArray,
    batch: int,
    cues: int = 5,
    *,
    cue: int = 20,
    gap: int = 10,
    delay: int = 30,
    recall: int = 20,
    bias: float = 0.7,
    active: float = 0.2,
    noise: float = 0.02,
) -> Sequences:
    """Cues come from the left or the right; later, say from where more of them came.

    The inputs are spikes of 40 neurons: 10 each for cues from the left, from the right,
    the request to answer, and noise.

    **Arguments:**

    - `key`: a random key.
    - `batch`: the number of sequences.
    - `cues`: the number of cues, odd, so that one side has more.
    - `cue`, `gap`, `delay`, `recall`: steps of a cue, of the pause after it, before the
        request, and of the request.
    - `bias`: each sequence prefers a side; cues come from it with this probability.
    - `active`, `noise`: the probabilities of a spike in a step, of neurons with
        something to say and of those that make noise. The others are silent.

    **Returns:** inputs `[time, batch, 40]`; targets `[time, batch]`, 0 for left and 1
    for right; and a mask that is one during the request.

    **Raises:** ValueError if `cues` is even.

    ??? cite "Reference"

        Morcos & Harvey, Nat. Neurosci. 19 (2016), for mice; Bellec et al., Nat. Commun.
        11:3625 (2020), for spiking networks. Cues and delay are shorter here.
    """
    if cues % 2 == 0:
        raise ValueError(f"cues is {cues}; expected an odd number, so that none ties.")
    prefer, draw, spikes = jax.random.split(key, 3)
    preferred = jax.random.bernoulli(prefer, bias, (batch, 1))
    right = jax.random.bernoulli(draw, bias, (batch, cues)) == preferred
    label = (jnp.sum(right, axis=1) > cues // 2).astype(int)

    steps = cues * (cue + gap) + delay + recall
    step = jnp.arange(steps)[:, None]
    number = step // (cue + gap)
    on = (number < cues) & (step % (cue + gap) < cue)
    from_right = right.T[jnp.minimum(number[:, 0], cues - 1)]
    asked = step >= steps - recall
    speaks = [on & ~from_right, on & from_right, jnp.repeat(asked, batch, axis=1)]
    rates = [jnp.where(group, active, 0.0) for group in speaks]
    rates = jnp.stack([*rates, jnp.full((steps, batch), noise)], axis=2)
    rates = jnp.repeat(rates, GROUP, axis=2)
    inputs = jax.random.bernoulli(spikes, rates).astype(float)
    targets = jnp.broadcast_to(label, (steps, batch))
    return Sequences(inputs, targets, asked[:, 0].astype(float))


def copy(
    key: PRNGKeyArray,
    batch: int,
    delay: int = 10,
    *,
    symbols: int = 4,
    length: int = 3,
) -> Sequences:
    """See a few symbols, wait, and say them again in their order.

    **Arguments:**

    - `key`: a random key.
    - `batch`: the number of sequences.
    - `delay`: steps between the last symbol and the first answer.
    - `symbols`: how many different symbols there are.
    - `length`: how many are to be remembered.

    **Returns:** inputs `[time, batch, symbols + 1]`, one-hot, the last one being the
    request to answer; targets `[time, batch]`; and a mask that is one where they count.

    ??? cite "Reference"

        Hochreiter & Schmidhuber, Neural Computation 9 (1997); in this form Arjovsky,
        Shah & Bengio, ICML 2016.
    """
    shown = jax.random.randint(key, (length, batch), 0, symbols)
    before = ((0, 0), (0, 0), (0, 1))
    inputs = jnp.pad(jax.nn.one_hot(shown, symbols), before)
    inputs = jnp.pad(inputs, ((0, delay + length), (0, 0), (0, 0)))
    asked = (jnp.arange(len(inputs)) >= length + delay).astype(inputs.dtype)
    inputs = inputs.at[:, :, -1].set(asked[:, None])
    targets = jnp.pad(shown, ((length + delay, 0), (0, 0)))
    return Sequences(inputs, targets, asked)


def cross_entropy(
    outputs: Float[Array, "batch classes"], targets: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The loss of one step of a batch, for either task."""
    logits = jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.take_along_axis(logits, targets[:, None], axis=1))


def error_rate(
    outputs: Float[Array, "time batch classes"], sequences: Sequences
) -> Float[Array, ""]:
    """The fraction of wrong answers, of all steps that ask for one."""
    wrong = (jnp.argmax(outputs, axis=2) != sequences.targets).astype(outputs.dtype)
    return jnp.average(jnp.mean(wrong, axis=1), weights=sequences.mask)
