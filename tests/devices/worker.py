"""One of two processes with four devices each: trains together with the other, and
alone, and compares.

    python -m tests.devices.worker ADDRESS PROCESS
"""

import sys

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")


def main(address: str, process: int) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)

    import numpy as np
    import optax

    import etrace

    from .placed import Layout, Leaky, axes, data, loss, share

    assert (jax.process_count(), len(jax.devices())) == (2, 8)
    algorithm, (xs, ys) = etrace.DRTRL(Leaky(), batched=True), data()
    train = etrace.learn(loss, optax.adam(1e-2), window=2)
    alone, _, _, losses = train(algorithm, None, None, xs, ys)

    for layout in (8, 1), (2, 4):
        place = Layout(*layout)
        placed = algorithm.with_model(place.model(algorithm.model))
        shared = place.data((xs, ys))
        report = placed.graph(shared[0][0])
        assert report.nbytes_per_device == report.nbytes / 8, report
        state = placed.init(shared[0][0])
        assert share(state[2]) == 1 / 8
        together, _, state, found = train(placed, None, state, *shared)
        assert all(axes(e)[0] == "data" for e in jax.tree.leaves(state[2]))
        assert share(state[2]) == 1 / 8
        np.testing.assert_allclose(found, losses, rtol=1e-9)
        models = together.model, alone.model, placed.model
        for new, expected, old in zip(*map(jax.tree.leaves, models), strict=True):
            assert axes(new) == axes(old)
            for part in new.addressable_shards:
                np.testing.assert_allclose(part.data, expected[part.index], rtol=1e-9)
    print("equal")
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
