"""Why credit is left out, and what to do about it."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, order=True)
class Reason:
    text: str
    remedy: str


BEHIND_MIXING = Reason(
    "a mixing operation lies between the weight and the state",
    "Apply the weight behind that operation, or take the local part of the "
    'derivative with mixing_tails="local": check_gradients tells which is nearer.',
)
SEVERAL_POSITIONS = Reason(
    "one value flows into several positions of the state",
    "Traces for each position are kept up to 2**24 numbers. Beyond, or where positions "
    "meet on the way, give each a value of its own: jnp.broadcast_to the weight, to "
    "one row a position, before it meets data.",
)
ONLY_BY_MIXING = Reason(
    "reaches the state only by mixing", "Let the operation feed the state directly."
)
LOCAL_PART = Reason(
    "the local part of a mixing tail (mixing_tails='local')",
    "It is an approximation that was asked for.",
)
OWN_RECURRENCE = Reason(
    "the state enters its own recurrence",
    "Local rules leave this out by definition. SnAp(n) and RTRL follow it, multi-step "
    "windows follow it within a window.",
)

ANOTHERS_MEMORY = Reason(
    "another group of the state reads it, and remembers what it read",
    "Credit from there is that of the same step. Smooth the outputs of a layer rather "
    "than those of the read-out, or use a rule that is told of leaky read-outs (EProp, "
    "OTPE); SnAp(n) and RTRL follow every memory, multi-step windows within a window.",
)
ANOTHERS_LEAK = Reason(
    "another group of the state reads it, and is taken to keep what this rule was told",
    "Exact if that group keeps this share (`kappa`, `leak`) of what it read in a step, "
    "and nothing reads it but outputs.",
)

NOBODYS_MEMORY = Reason(
    "this rule filters what leaves here as if a leaky group read it, and none does",
    "Credit reaches further into the past than it should. Filter it in the read-out "
    "too, or set the filter (`kappa`, `leak`) to 0.",
)

INITIAL_BY_MIXING = Reason(
    "the initial state enters nothing but the recurrence",
    "Local rules leave this out by definition. SnAp(n) and RTRL follow it, multi-step "
    "windows follow it within a window.",
)
NOT_HIDDEN = Reason(
    "init_state() makes state of it that is carried without credit",
    "Select that state with hidden_filter.",
)
NOT_READ = "neither the step nor init_state() reads it"
STOPPED = "no gradient flows from it (stop_gradient, rounding)"


def not_initial(error: str) -> Reason:
    return Reason(
        f"JAX cannot trace it ({error}), so that no gradient flows into what it reads",
        "Write it with jax.numpy and without decisions by the values of arrays; make "
        "sizes static fields.",
    )


UNHEARD = Reason(
    "no output of the same step reads it, so that its past gets no credit",
    "Signals of single steps come from outputs of the same step. Let one read it, or "
    "keep what is queued or counted as further numbers of the same neurons. Or use "
    'vjp_method="multi-step" with windows that span the delay, SnAp(n), or RTRL.',
)


NOT_LINEAR = Reason(
    "the derivative of this function is not linear in what comes back (it clips or "
    "scales it), or cannot be shown to be: no rule that goes forwards follows it",
    'Only vjp_method="multi-step" with one window over the sequence gives the gradient '
    "of backpropagation. Or clip what value_and_grad returns.",
)

NOT_LOOKED_AT = Reason(
    "the derivative of this function, a loop of unknown length, is not looked at, and "
    "taken to be linear in what comes back",
    "check_gradients tells whether it is: RTRL and BPTT then agree.",
)


def not_traceable(primitive: str) -> Reason:
    return Reason(
        f"{primitive} is not a traceable operation",
        "Write it as products, convolutions, lookups and elementwise operations; take "
        "products with weights out of loops of more than 32 rounds.",
    )


def other_position(elements: int, most: int) -> Reason:
    return Reason(
        f"{elements} elements meet at another position than their own",
        "Coupling between neurons is left out like their recurrence. If they are parts "
        f"of one neuron, keep them along an axis of their own, of at most {most} "
        "(position_size).",
    )


def moved_there(elements: int, most: int) -> Reason:
    return Reason(
        f"{elements} elements of its new value come from another position (moved, such "
        "as in a delay line)",
        f"Delays of at most {most} steps (position_size) are followed if they have an "
        "axis of their own.",
    )


def too_large(numbers: int, most: int) -> Reason:
    return Reason(
        f"positions would have {numbers} numbers here, more than position_size={most}: "
        "the coupling inside them is left out",
        f"position_size={numbers} follows it.",
    )


@dataclasses.dataclass(frozen=True)
class Loss:
    """Something that no trace follows, so that credit through it is left out.

    - `what`: the parameters that are not (fully) traced, or the state leaves.
    - `primitive`, `source`: the operation, and its line in the user's code.
    - `reason`, `remedy`: why, and what can be done about it.
    """

    what: tuple[str, ...]
    primitive: str
    source: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        at = f", at {self.primitive}" if self.primitive else ""
        line = f" in {self.source}" if self.source else ""
        return f"{', '.join(self.what)}: {self.reason}{at}{line}\n    {self.remedy}"


def together(reasons: Sequence[Reason]) -> tuple[str, str]:
    """The texts and remedies of several reasons."""
    found = sorted(set(reasons))
    return "; ".join(r.text for r in found), " ".join(r.remedy for r in found)
