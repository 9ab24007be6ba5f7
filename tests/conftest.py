"""Strict JAX, fixed seeds, and two devices, for every test."""

import os
import random

# Both are read when JAX is imported, so they come first. Two devices on the CPU let
# `pmap` and `shard_map` be tested anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from .helpers import clear_caches  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling takes seconds, so neither a deadline nor the speed of drawing says anything.
_common = dict(
    deadline=None,
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
    clear_caches()
