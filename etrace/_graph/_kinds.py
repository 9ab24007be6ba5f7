"""What a primitive does to positions: acts element by element, moves, or mixes.

* An *elementwise* equation computes each element of its output from the same element
  of every operand (scalars and axes of length one are broadcast).
* A *movement* copies elements of its operands to other places.
* Everything else *mixes*: positions talk to each other there.

Anything unknown mixes, which costs credit but never correctness.
"""

import enum


class Kind(enum.Enum):
    ELEMENTWISE = "elementwise"
    MOVEMENT = "movement"
    MIXING = "mixing"
    # A value whose derivative is zero by declaration.
    STOP = "stop"


#: Primitives of JAX that compute each element from the same of every operand.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp complex conj convert_element_type copy copy_p cos cosh digamma div
    eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow
    is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or
    polygamma pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt
    square sub tan tanh xor zeta
    """.split()
)
