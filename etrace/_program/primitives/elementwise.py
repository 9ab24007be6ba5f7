"""Operations that compute each element from the same of every operand."""

from ..primitive import Kind, Primitive, Singular, Zeros


def _each(names: str, **known) -> tuple[Primitive, ...]:
    return tuple(Primitive(n, Kind.ELEMENTWISE, **known) for n in names.split())


(AND,) = _each("and")
(CLAMP,) = _each("clamp")
(COPY,) = _each("copy", zeros=Zeros.FIRST)
# By predicates that are known it is a movement.
(SELECT,) = _each("select_n", indices=slice(0, 1))

ELEMENTWISE = (
    *(AND, CLAMP, COPY, SELECT),
    *_each(
        """
        abs asinh atan bessel_i0e bessel_i1e complex conj cos eq erf erfc ge gt igamma
        igammac is_finite le logistic lt ne nextafter not or polygamma reduce_precision
        rem sin tanh xor zeta
        """
    ),
    *_each("add add_any sub max min", zeros=Zeros.ALL),
    *_each("neg convert_element_type copy_p real imag", zeros=Zeros.FIRST),
    *_each("round floor ceil sign", flat=True),
    *_each(
        """
        acos acosh asin atanh cbrt cosh digamma erf_inv exp exp2 expm1 integer_pow
        lgamma log log1p rsqrt sinh sqrt square tan
        """,
        singular=Singular.WEIGHTS,
    ),
    *_each("mul", singular=Singular.WEIGHTS, zeros=Zeros.PRODUCT),
    *_each("atan2 pow", singular=Singular.WITH_DATA),
    *_each("div", singular=Singular.WITH_DATA, zeros=Zeros.FIRST),
)
