"""What the models must do whatever their weights: strengths, grids, constant work, sizes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editmgt_jax.config import MGTConfig, SchedulerConfig, VQConfig
from editmgt_jax.models import layers
from editmgt_jax.models.cells import Downsample, Upsample, from_cells, to_cells
from editmgt_jax.models.layers import GroupNorm
from editmgt_jax.models.mgt import MGT, init_mgt
from editmgt_jax.models.vq import VQModel

pytestmark = pytest.mark.usefixtures("exact_types")

CONFIG = MGTConfig(
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=12,
    num_attention_heads=3,
    joint_attention_dim=10,
    pooled_projection_dim=7,
    axes_dims_rope=(4, 4, 4),
    vocab_size=20,
    codebook_size=16,
    connector_type="none",
    text_encoder_architecture="CLIP",
)
BATCH, TEXT, GRID = 2, 5, (4, 6)


@pytest.fixture(scope="module")
def params():
    params = jax.jit(partial(init_mgt, MGT(CONFIG)))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def _inputs(grid=GRID):
    keys = jax.random.split(jax.random.key(2), 4)
    text = jax.random.normal(keys[0], (BATCH, TEXT, 10)), jax.random.normal(keys[1], (BATCH, 7))
    tokens, reference = (jax.random.randint(k, (BATCH, *grid), 0, 16) for k in keys[2:])
    return (*text, jnp.ones((BATCH, 5))), tokens, reference


def _logits(params, reference, strength=1.0, remat="none", grid=GRID):
    model, (text, tokens, default) = MGT(CONFIG, remat=remat), _inputs(grid)
    reference = default if reference is True else reference

    def forward(module):
        return module(tokens, 2.0, module.condition(*text, reference, strength))[0]

    return jax.jit(partial(model.apply, method=forward))({"params": params})


def test_strength_zero_is_no_reference_at_all(params):
    without, zero = _logits(params, None), _logits(params, True, 0.0)
    np.testing.assert_allclose(zero, without, atol=2e-5)
    assert np.abs(_logits(params, True, 1.0) - without).max() > 1e-3


def test_strength_may_differ_in_a_batch(params):
    mixed = _logits(params, True, jnp.array([0.0, 1.3]))
    np.testing.assert_allclose(mixed[0], _logits(params, True, 0.0)[0], atol=2e-5)
    np.testing.assert_allclose(mixed[1], _logits(params, True, 1.3)[1], atol=2e-5)


@pytest.mark.parametrize("remat", ["dots", "products", "full"])
def test_remat_changes_no_value(params, remat):
    np.testing.assert_allclose(_logits(params, True, remat=remat), _logits(params, True), atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "products", "full"])
def test_remat_changes_no_gradient(params, remat):
    (states, pooled, micro), tokens, reference = _inputs()
    wanted = jax.random.normal(jax.random.key(7), (BATCH, *GRID, 16))

    def loss(params, states, pooled, remat):
        def forward(module):
            return module(tokens, 2.0, module.condition(states, pooled, micro, reference, 1.3))[0]

        return jnp.sum(wanted * MGT(CONFIG, remat=remat).apply({"params": params}, method=forward))

    found, expected = (
        jax.jit(jax.grad(partial(loss, remat=how), (0, 1, 2)))(params, states, pooled) for how in (remat, "none")
    )
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(y).max() > 0, path
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_logits_follow_the_grid(params):
    assert _logits(params, True).shape == (BATCH, *GRID, 16)
    assert _logits(params, True, grid=(8, 2)).shape == (BATCH, 8, 2, 16)


def test_logits_by_place_in_a_cell_are_those_of_the_grid(params):
    model, (text, tokens, reference) = MGT(CONFIG), _inputs()

    def forward(module):
        return module(tokens, 2.0, module.condition(*text, reference, 1.0), by_cell=True)[0]

    by_cell = np.asarray(jax.jit(partial(model.apply, method=forward))({"params": params}))
    grid = np.asarray(_logits(params, True))
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            place, cell = 2 * (row % 2) + column % 2, row // 2 * (GRID[1] // 2) + column // 2
            np.testing.assert_allclose(by_cell[place, :, cell], grid[:, row, column], atol=1e-6)
    places = to_cells(tokens, 2)
    np.testing.assert_array_equal(from_cells(places[..., None], (2, 3))[..., 0], tokens)
    assert places[1, 0, 2] == tokens[0, 0, 5]


def test_both_convolutions_of_cells_are_the_textbook_ones():
    x = jax.random.normal(jax.random.key(0), (BATCH, 4, 6, 3))
    cells = jnp.stack([x[:, row::2, column::2].reshape(BATCH, 6, 3) for row in (0, 1) for column in (0, 1)])
    kernel = jax.random.normal(jax.random.key(1), (2, 2, 3, 3))
    expected = nn.Conv(3, (2, 2), (2, 2), padding="VALID", use_bias=False).apply({"params": {"kernel": kernel}}, x)
    found = Downsample(jnp.float32).apply({"params": {"kernel": kernel}}, cells)
    np.testing.assert_allclose(found, expected.reshape(BATCH, 6, 3), atol=1e-5)
    up = Upsample(jnp.float32).apply({"params": {"kernel": kernel.transpose(2, 0, 1, 3).reshape(3, 12)}}, found)
    transposed = jax.lax.conv_transpose(
        expected, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(from_cells(up, (2, 3)), transposed, atol=1e-5)


def test_weighted_attention_averages_the_full_map(params):
    model, (text, tokens, reference) = MGT(CONFIG), _inputs()

    def attention(module, text_weights, layers):
        return module(tokens, 2.0, module.condition(*text, reference), text_weights, layers)[1]

    @partial(jax.jit, static_argnums=1)
    def run(text_weights, layers):
        return model.apply({"params": params}, text_weights, layers, method=attention)

    full = run(jnp.broadcast_to(jnp.eye(TEXT), (BATCH, TEXT, TEXT)), (0, 1, 2, 3))  # [B 4 T N]
    assert full.shape == (BATCH, 4, TEXT, 6)
    assert (full.sum(-1) < 1).all()  # the rest of the softmax is on text
    mean = run(jnp.full((BATCH, 1, TEXT), 1 / TEXT), (3, 1))
    np.testing.assert_allclose(mean[:, :, 0], full[:, jnp.array([3, 1])].mean(2), atol=1e-6)
    last = run(jnp.full((1, 1, TEXT), 1 / TEXT), (3, 1))  # weights of fewer samples than there are: the last ones
    np.testing.assert_allclose(last, mean[-1:], atol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m, text, tokens: m(tokens[:, :3], 0.0, m.condition(*text)), "multiples of 2"),
        (lambda m, text, tokens: m(tokens, 0.0, m.condition(*text, tokens[:, :2])), "the image.s grid"),
        (lambda m, text, tokens: m(tokens, 0.0, m.condition(*text), jnp.ones((2, 1, 5)), (4,)), r"0\.\.3"),
        (lambda m, text, tokens: m(tokens, 0.0, m.condition(*text), jnp.ones((2, 1, 5))), "need layers"),
        (lambda m, text, tokens: m.condition(text[0][..., :3], *text[1:]), "joint_attention_dim"),
    ],
)
def test_inputs_that_do_not_fit_are_errors(params, call, words):
    text, tokens, _ = _inputs()
    with pytest.raises(ValueError, match=words):
        MGT(CONFIG).apply({"params": params}, method=lambda module: call(module, text, tokens))


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_the_full_size_editor_has_the_released_number_of_parameters():
    shapes = jax.eval_shape(lambda key: init_mgt(MGT(MGTConfig()), key), jax.random.key(0))
    assert _count(shapes) == 1_009_306_624


def test_the_full_size_tokenizer_has_the_released_number_of_parameters():
    config = VQConfig(
        block_out_channels=(128, 256, 256, 512, 768),
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=8192,
        mid_block_add_attention=False,
    )
    shapes = jax.eval_shape(VQModel(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert _count(shapes) == 146_244_675


def test_vq_leftover_masks_decode_as_code_zero():
    config = VQConfig((4, 8), 1, 3, 10, norm_num_groups=2)
    model = VQModel(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    decode = jax.jit(partial(model.apply, params, method="decode"))
    ids = jnp.array([[[3, 10], [4, 11]]])
    np.testing.assert_array_equal(decode(ids), decode(jnp.where(ids < 10, ids, 0)))


def test_the_reference_must_have_the_image_s_grid(params):
    model = MGT(CONFIG)
    states, pooled, micro = jnp.zeros((1, TEXT, 10)), jnp.zeros((1, 7)), jnp.zeros((1, 5))
    condition = model.apply(
        {"params": params}, states, pooled, micro, jnp.zeros((1, 6, 4), jnp.int32), method="condition"
    )
    with pytest.raises(ValueError, match="must have the image's grid"):
        model.apply({"params": params}, jnp.zeros((1, 4, 6), jnp.int32), 0.0, condition)


def test_a_text_to_image_base_is_read_from_the_keys_that_it_has():
    values = dict(num_layers=2, num_single_layers=2, attention_head_dim=12, num_attention_heads=3,
                  joint_attention_dim=10, pooled_projection_dim=7, axes_dims_rope=[4, 4, 4], vocab_size=20,
                  codebook_size=16)  # fmt: skip
    config = MGTConfig.from_dict(values)
    assert (config.connector_type, config.text_encoder_architecture, config.downsample) == ("none", "CLIP", False)
    assert MGTConfig.from_dict(values | {"connector_type": None, "downsample": True, "upsample": True}) == CONFIG


@pytest.mark.parametrize(
    "config, values, message",
    [
        (MGTConfig, [1], "must be a JSON object"),
        (MGTConfig, {"num_layers": "14"}, "num_layers must be int"),
        (MGTConfig, {"num_attention_heads": 0}, "num_attention_heads must be positive"),
        (MGTConfig, {"axes_dims_rope": [16, 56, "56"]}, "axes_dims_rope must be"),
        (SchedulerConfig, {"mask_token_id": 5, "default_steps": 1.5}, "default_steps must be int"),
    ],
)
def test_wrong_values_of_a_config_are_named(config, values, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(values)


def test_group_norm_is_the_textbook_one():
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 5, 6)).astype(np.float32)
    module = GroupNorm(3)
    ours = module.apply(module.init(jax.random.key(0), x), x)
    groups = x.reshape(2, 15, 3, 2)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    np.testing.assert_allclose(ours, ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_gradients_of_the_token_embedding_are_those_of_a_lookup(dtype, monkeypatch):
    ids = jax.random.randint(jax.random.key(0), (3, 5, 7), 0, 4)
    table = jax.random.normal(jax.random.key(1), (11, 6))
    wanted = jax.random.randint(jax.random.key(2), (3, 5, 7, 6), -8, 9).astype(
        dtype
    )  # whole numbers: their sums are exact
    ours = layers.TokenEmbedding(11, 6, dtype)

    def gradient(lookup):
        return jax.grad(lambda table: jnp.sum((lookup(table) * wanted).astype(jnp.float32)))(table)

    expected = np.zeros((11, 6), np.float32)
    np.add.at(expected, np.asarray(ids).reshape(-1), np.asarray(wanted, np.float32).reshape(-1, 6))
    np.testing.assert_array_equal(gradient(lambda table: ours.apply({"params": {"embedding": table}}, ids)), expected)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, tpu, default: default(*args))
    np.testing.assert_array_equal(gradient(lambda table: ours.apply({"params": {"embedding": table}}, ids)), expected)
