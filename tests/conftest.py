"""Strict JAX, fixed seeds, and eight devices, for every test."""

import gc
import os
import random
from importlib import metadata

# Both are read when JAX is imported, so they come first. Eight devices on the CPU let
# `pmap` and `shard_map` be tested anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of tiny programs and run each a few times: optimising them
# would take most of the time.
_flags = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
_jaxlib = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))
if _jaxlib < (0, 11):  # later ones end at a flag they do not know
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_flags)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Where each operation was written is noted in what is compiled, and read by nobody.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Of the references, shapes are checked in this profile alone: it takes a tenth of the
# time of the tests that use them.
if os.environ.get("HYPOTHESIS_PROFILE") == "thorough":
    jaxtyping.install_import_hook("etrace.testing", "beartype.beartype")

# Tracing makes many small objects, few of them garbage: looking for it less often saves
# a twentieth of the time.
gc.set_threshold(200_000, 20, 100)

# Compiling takes seconds, so neither a deadline nor the speed of drawing says anything,
# and shrinking a failure would take many minutes.
_common = dict(
    deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=50, **_common)
hypothesis.settings.register_profile(
    "thorough", derandomize=False, max_examples=1000, print_blob=True, **_common
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="module")
def _caches_cleared_between_modules():
    yield
    # Not before: jaxtyping has to see the package being imported.
    from .helpers import fresh_caches

    fresh_caches()
