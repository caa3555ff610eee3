"""Where arrays lie: rules cover all, and a step is the same on every mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_runs import compiled_step, distances, first_step, frozen_config, token_batch

from editmgt_jax.training.sharding import BATCH, MGT_RULES, Layout, make_mesh, replicated_share

ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}


@pytest.fixture(scope="module")
def alone(tiny_model):
    """A step on one device."""
    return first_step(frozen_config(tiny_model), token_batch(), jax.devices()[:1])


def assert_same_step(result, expected):
    """Gradients agree leaf by leaf (the first moment is a tenth of them), parameters as a whole: Adam's first step is the sign
    of a gradient, whatever its size, and some are 0 but for rounding."""
    (before, after, metrics), (other_before, other_after, other_metrics) = result, expected
    jax.tree.map(np.testing.assert_array_equal, before, other_before)
    np.testing.assert_allclose(metrics["loss"], other_metrics["loss"], rtol=1e-6)
    for name in ("gradient_norm", "accuracy", "accuracy_changed"):
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-5)
    moments, _ = distances(after.opt_state[1][0].mu, other_after.opt_state[1][0].mu)
    assert max(moments.values()) < 1e-5, max(moments.items(), key=lambda item: item[1])
    assert distances(after.params, other_after.params)[1] < 1e-5


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}, {"fsdp": 4, "context": 2}],
    ids=lambda sizes: "-".join(f"{axis}{size}" for axis, size in sizes.items()),
)
def test_a_step_on_eight_devices_is_a_step_on_one(alone, tiny_model, sizes):
    assert_same_step(first_step(frozen_config(tiny_model), token_batch(), **sizes), alone)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}], ids=str)
def test_a_step_moves_no_activations_between_devices(tiny_model, sizes):
    """Where positions are whole, XLA has no cause to exchange parts of arrays: it would mean that it guesses."""
    config = frozen_config(tiny_model)
    config.model.remat = "products"
    text = compiled_step(config, token_batch(), **sizes)
    kinds = set(re.findall(r"(all-to-all|collective-permute|all-gather|all-reduce|reduce-scatter)(?:-start)?\(", text))
    assert "all-reduce" in kinds and not kinds & {"all-to-all", "collective-permute"}


def test_accumulating_four_parts_is_one_batch(alone, tiny_model):
    config = frozen_config(tiny_model)
    config.accumulate = 4
    assert_same_step(first_step(config, token_batch(), jax.devices()[:2], fsdp=2), alone)


@pytest.mark.slow
def test_the_mean_over_samples_adds_up_over_parts_too(tiny_model):
    config = frozen_config(tiny_model)
    config.loss.mean = "sample"
    whole = first_step(config, token_batch(), jax.devices()[:1])
    config.accumulate = 2
    assert_same_step(first_step(config, token_batch(), jax.devices()[:1]), whole)


def test_every_leaf_is_covered_and_split():
    layout = Layout(make_mesh(ONE | {"fsdp": -1}), MGT_RULES)
    tree = {"mgt": {"to_q": {"kernel": jnp.zeros((3, 16, 32)), "bias": jnp.zeros((3, 32))}, "step": jnp.zeros(())}}
    found = layout.of(tree)["mgt"]
    assert found["to_q"]["kernel"].spec == P(None, "fsdp", "tensor") and found["step"].spec == P()
    assert replicated_share(tree, layout.of(tree)) < 0.01
    with pytest.raises(ValueError, match="none covers mgt/odd"):
        layout.of({"mgt": {"odd": jnp.zeros((8, 8))}})
    with pytest.raises(ValueError, match=r"dimension 1 of mgt/to_q/kernel \[3, 12, 32\] must be a multiple of the 8"):
        layout.of({"mgt": {"to_q": {"kernel": jnp.zeros((3, 12, 32))}}})


def test_mesh_sizes():
    assert dict(make_mesh(ONE | {"data": 2, "fsdp": -1}).shape) == ONE | {"data": 2, "fsdp": 4}
    for wrong in ({"fsdp": 3}, {"fsdp": -1, "data": -1}, {"fsdp": 0}, {"fsdp": 16}):
        with pytest.raises(ValueError, match="mesh axes"):
            make_mesh(ONE | wrong)


def test_slices_lie_along_the_data_axis():
    class Device:
        platform, device_kind, coords, core_on_chip = "cpu", "cpu", (0, 0, 0), 0

        def __init__(self, number):
            self.id, self.slice_index, self.process_index = number, number // 4, number // 4

    devices = [Device(i) for i in range(8)]
    grid = make_mesh(ONE | {"data": 2, "fsdp": -1}, devices).devices
    assert grid.shape == (2, 4, 1, 1) and all({d.slice_index for d in row.flat} == {i} for i, row in enumerate(grid))
    with pytest.raises(ValueError, match="multiple of the 2 slices"):
        make_mesh(ONE | {"fsdp": -1}, devices)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_mesh_of_chips_of_which_no_side_is_an_axis(slices):
    """16 of 8 x 8 chips: on each a share of both sides."""

    class Chip:
        platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

        def __init__(self, number):
            self.id, self.slice_index, self.process_index = number, number // 64, number // 4
            self.coords = (number % 8, number // 8 % 8, 0)

    chips = [Chip(i) for i in range(64 * slices)]
    grid = make_mesh(ONE | {"data": -1, "fsdp": 16}, chips).devices
    assert grid.shape == (4 * slices, 16, 1, 1) and len({chip.id for chip in grid.flat}) == len(chips)
    for row in grid.reshape(-1, 16):  # chips that share a copy of the parameters are neighbours
        sides = [{chip.coords[side] for chip in row} for side in range(2)]
        assert sorted(map(len, sides)) == [2, 8] and len({chip.slice_index for chip in row}) == 1


def test_batches_are_spread_over_data_and_fsdp():
    layout = Layout(make_mesh(ONE | {"data": 2, "fsdp": 2, "context": 2}))
    batch = {"source_ids": np.arange(8 * 4 * 4).reshape(8, 4, 4), "text_ids": np.arange(16).reshape(8, 2)}
    spread = layout.put_batch(batch, 8)
    assert spread["source_ids"].sharding.spec == P(BATCH, "context") and spread["text_ids"].sharding.spec == P(BATCH)
    for name, value in spread.items():
        np.testing.assert_array_equal(value, batch[name])
    assert layout.local_examples(8) == tuple(range(8))
    with pytest.raises(ValueError, match="batch_size must be a multiple of 12"):
        layout.check_batch(8, 3)
