"""LPIPS against the same network in PyTorch, and its files."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax.errors import UserError
from editmgt_jax.models import lpips
from editmgt_jax.weights import lpips as files

pytestmark = pytest.mark.usefixtures("exact_types")


def random_params(network, key=0):
    module = lpips.LPIPS(network)
    params = jax.jit(module.init)(jax.random.key(key), *jnp.zeros((2, 1, 64, 64, 3)))["params"]
    return module, jax.tree.map(lambda x: jnp.abs(x) if x.ndim == 1 else x, params)


def pictures(seed=1):
    return jax.random.uniform(jax.random.key(seed), (2, 2, 64, 48, 3))


@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_the_same_picture_is_at_distance_0_and_order_does_not_matter(network):
    module, params = random_params(network)
    one, other = pictures()
    measure = jax.jit(module.apply)
    distance = measure({"params": params}, one, other)
    assert distance.shape == (2,) and (distance > 1e-3).all()
    np.testing.assert_array_equal(measure({"params": params}, one, one), 0)
    np.testing.assert_allclose(distance, measure({"params": params}, other, one), rtol=1e-6)


@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_a_file_gives_back_what_was_saved(tmp_path, network):
    _, params = random_params(network)
    files.save(params, tmp_path / "weights.safetensors")
    read = files.load(tmp_path / "weights.safetensors")
    assert lpips.network_of(read) == network
    jax.tree.map(np.testing.assert_array_equal, params, read)


def test_files_of_other_things_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none"):
        files.load(tmp_path / "none.safetensors")
    files.save({"convolution_0": {"kernel": np.zeros(3)}}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="alexnet"):
        files.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="'resnet'"):
        files.read_package("resnet")


def test_a_pickle_runs_nothing(tmp_path):
    class Call:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"a": Call()}))
    with (tmp_path / "bad.ckpt").open("rb") as file, pytest.raises(ValueError, match="numpy arrays only"):
        files._ArraysOnly(file).load()


def torch_tensors(params, torch):
    """SqueezeNet's parameters by torchvision's names."""
    fires = [
        f"features.{n}.{part}" for n in (3, 4, 6, 7, 9, 10, 11, 12) for part in ("squeeze", "expand1x1", "expand3x3")
    ]
    found = {}
    for number, name in enumerate(["features.0", *fires]):
        one = params[f"convolution_{number}"]
        found[f"{name}.weight"] = torch.tensor(np.asarray(one["kernel"]).transpose(3, 2, 0, 1).copy())
        found[f"{name}.bias"] = torch.tensor(np.asarray(one["bias"]))
    return found


@pytest.mark.parity
def test_files_of_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    _, params = random_params("squeezenet")
    trunk, linear = tmp_path / "trunk.pth", tmp_path / "squeeze.pth"
    torch.save(torch_tensors(params, torch) | {"classifier.1.weight": torch.zeros(3)}, trunk)
    weights = {
        f"lin{n}.model.1.weight": torch.tensor(np.asarray(params[f"linear_{n}"]))[None, :, None, None] for n in range(7)
    }
    torch.save(weights, linear)
    jax.tree.map(np.testing.assert_array_equal, params, files.read_torch("squeezenet", trunk, linear))
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    for first, second, words in (
        ("other", "squeeze", "25 convolutions of squeezenet; it holds 1"),
        ("trunk", "other", "linear layers of squeezenet"),
        ("text", "squeeze", "must be a file of tensors of PyTorch"),
    ):
        with pytest.raises(UserError, match=words) as error:
            files.read_torch("squeezenet", tmp_path / f"{first}.pth", tmp_path / f"{second}.pth")
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is none at"):
        files.read_torch("squeezenet", tmp_path / "none.pth", linear)


@pytest.mark.parity
@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_equals_pytorch(network):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    module, params = random_params(network)
    one, other = pictures()

    def features(pixels):
        x = torch.tensor(np.asarray(pixels)).permute(0, 3, 1, 2) * 2 - 1
        shift, scale = (torch.tensor(x)[:, None, None] for x in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
        x, found = (x - shift) / scale, []
        if network == "squeezenet":
            return squeezed(x)
        strides, paddings = ((4, 1, 1, 1, 1), (2, 2, 1, 1, 1)) if network == "alexnet" else ((1,) * 13, (1,) * 13)
        pooled = {"alexnet": (1, 2), "vgg16": (2, 4, 7, 10)}[network]
        kept = {"alexnet": range(1, 6), "vgg16": (2, 4, 7, 10, 13)}[network]
        for n, (stride, padding) in enumerate(zip(strides, paddings, strict=True)):
            weights = {k: torch.tensor(np.asarray(v)) for k, v in params[f"convolution_{n}"].items()}
            kernel = weights["kernel"].permute(3, 2, 0, 1)
            x = functional.relu(functional.conv2d(x, kernel, weights["bias"], stride, padding))
            if n + 1 in kept:
                found.append(functional.normalize(x, dim=1))
            if n + 1 in pooled:
                x = functional.max_pool2d(x, 3 if network == "alexnet" else 2, 2)
        return found

    def squeezed(x):
        """torchvision's squeezenet1_1 by its modules' names, and the features that LPIPS takes of it."""
        tensors, found = torch_tensors(params, torch), []
        fires = (3, 4, 6, 7, 9, 10, 11, 12)

        def convolved(x, name, **how):
            return functional.relu(functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **how))

        for number in range(13):
            if number == 0:
                x = convolved(x, "features.0", stride=2)
            if number in (2, 5, 8):
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            if number in fires:
                x = convolved(x, f"features.{number}.squeeze")
                one = convolved(x, f"features.{number}.expand1x1")
                x = torch.cat([one, convolved(x, f"features.{number}.expand3x3", padding=1)], 1)
            if number in (1, 4, 7, 9, 10, 11, 12):
                found.append(functional.normalize(x, dim=1))
        return found

    expected = 0
    for stage, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        weights = torch.tensor(np.asarray(params[f"linear_{stage}"]))
        expected = expected + ((a - b) ** 2 * weights[:, None, None]).sum(1).mean((1, 2))
    np.testing.assert_allclose(module.apply({"params": params}, one, other), expected.numpy(), rtol=2e-5)
