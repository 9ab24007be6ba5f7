"""Networks of `etrace.nn` as graphs of NIR, the neuromorphic intermediate
representation, and back. Not imported by `import etrace`."""

try:
    import nir as _nir  # noqa: F401
except ImportError as error:
    raise ImportError(
        "etrace.nir exchanges networks through the package nir, which is not "
        "installed: pip install 'etrace-jax[nir]'"
    ) from error

from ._export import export as export
from ._load import load as load
from ._scale import Scale as Scale
