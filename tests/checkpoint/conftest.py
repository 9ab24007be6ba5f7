import jax
import pytest


@pytest.fixture(autouse=True)
def _promotion_as_optax_expects_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"
