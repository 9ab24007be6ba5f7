"""Branches, loops, calls, functions with a derivative of their own, and keys."""

from ..primitive import Kind, Primitive, Rewritten

BARRIER = Primitive("optimization_barrier")
COND = Primitive("cond", rewritten=Rewritten.BRANCHES)
CUSTOM_VJP = Primitive("custom_vjp_call", has_own_derivative=True)
SCAN = Primitive("scan")
SOLVE = Primitive("custom_linear_solve")
STOP = Primitive("stop_gradient", Kind.STOP, flat=True)
WHILE = Primitive("while", rewritten=Rewritten.FORWARDS)
WRAP_KEY = Primitive("random_wrap")

# Calls of functions whose equations may as well stand where they are called.
CALLS = tuple(
    map(
        Primitive,
        """
        jit pjit closed_call core_call remat remat2 checkpoint core_closed_call
        composite
        """.split(),
    )
)

CONTROL = (
    *(BARRIER, COND, CUSTOM_VJP, SCAN, SOLVE, STOP, WHILE, WRAP_KEY, *CALLS),
    Primitive("custom_jvp_call", has_own_derivative=True),
    # Equinox's checks (`eqx.error_if`).
    *(Primitive(f"unvmap_{of}", over_batch=True) for of in ("any", "all", "max")),
)


def draws(name: str) -> bool:
    """Whether a primitive is one of random numbers: of several keys at once, some
    generators make others."""
    return name.startswith(("random_", "rng_"))
