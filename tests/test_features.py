"""CLIP, DINO and structure distance on small random weights, against the reference codes' own steps.

Needs PyTorch (extra `eval`); left out where it is not installed. Preprocessing is compared everywhere.
"""

import shutil

import benchmark_data as made
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from editmgt_jax.evaluation import preprocess

SIZES = [(300, 200), (200, 301), (224, 224), (640, 480), (97, 511), (256, 256)]


def by_hand(image, resize, crop, mean, std):
    """Shorter side bicubic, centre crop with halves rounded to even, normalisation: written out."""
    width, height = image.size
    short, long = sorted((width, height))
    scaled = int(resize * long / short)
    image = image.resize((resize, scaled) if width <= height else (scaled, resize), Image.BICUBIC)
    array = np.asarray(image, np.float64) / 255
    top, left = (int(np.rint((side - crop) / 2)) for side in array.shape[:2])
    array = array[top : top + crop, left : left + crop]
    return ((array - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_the_reference_codes(size):
    image = made.picture(1, size)
    expected = by_hand(image, 224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    np.testing.assert_allclose(preprocess.clip_pixels([image])[0], expected, atol=1e-5)
    expected = by_hand(image, 256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    np.testing.assert_allclose(preprocess.dino_pixels([image])[0], expected, atol=1e-5)


def test_lpips_of_masked_pictures(tmp_path):
    from editmgt_jax.evaluation import evaluate
    from editmgt_jax.evaluation.features import Lpips, Models
    from editmgt_jax.evaluation.protocols.table import open_protocol
    from editmgt_jax.models.lpips import LPIPS
    from editmgt_jax.weights import lpips as files

    module = LPIPS("alexnet")
    params = jax.jit(module.init)(jax.random.key(0), *jnp.zeros((2, 1, 64, 64, 3)))["params"]
    files.save(params, tmp_path / "alexnet.safetensors")
    data = made.pie(tmp_path / "data", count=2)
    shutil.copytree(data / "annotation_images", tmp_path / "outputs")
    changed = tmp_path / "outputs" / "0_type" / f"{0:012}.png"
    after, before = (np.asarray(made.picture(seed, (512, 512))) for seed in (9, 0))
    Image.fromarray(after).save(changed)
    models = Models(lpips=Lpips(tmp_path / "alexnet.safetensors"))
    found = evaluate.evaluate(open_protocol("pie"), data, tmp_path / "run", outputs=tmp_path / "outputs", models=models)
    outside = np.ones((512, 512, 1), np.float32)
    outside[100:200] = 0
    pair = [jnp.asarray(x / 255 * outside, jnp.float32)[None] for x in (before, after)]
    expected = float(jax.jit(module.apply)({"params": params}, *pair)[0])
    table = found["results"]["all"]["0_random"]
    assert table["lpips_unedit_part_no_border"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert found["models"]["lpips"].endswith("(alexnet)")


# ---- with PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, torch):
    import transformers

    from editmgt_jax.models.prompts import train_tokenizer

    folder = tmp_path_factory.mktemp("clip") / "clip"
    size = train_tokenizer(["make the car red", "a small blue bird"] * 2, folder, merges=40, length=20)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {
        "vocab_size": size,
        "max_position_embeddings": 20,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=small | {"image_size": 224, "patch_size": 32}, projection_dim=16
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory, torch):
    import transformers

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=16, image_size=224
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.mark.parity
def test_clip_embeddings(clip_folder, torch):
    from transformers import CLIPModel, CLIPTokenizer

    from editmgt_jax.evaluation.features import Clip

    clip, model = Clip(str(clip_folder)), CLIPModel.from_pretrained(clip_folder)
    pictures = [made.picture(seed, (300, 200)) for seed in range(2)]
    values = torch.from_numpy(
        np.stack([by_hand(p, 224, 224, preprocess.CLIP_MEAN, preprocess.CLIP_STD) for p in pictures]).astype(np.float32)
    )
    captions = ["make the car red", "a bird " * 40]
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        captions, padding="max_length", truncation=True, max_length=20, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(pixel_values=values, **tokens)
    np.testing.assert_allclose(clip.images(pictures), output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.texts(captions), output.text_embeds.numpy(), atol=1e-5)
    assert clip.variant == "width 32, 2 layers, patch 32"


@pytest.mark.parity
def test_clip_pixels_are_those_of_transformers(torch):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = made.picture(3, (320, 240))  # even margins: where they are odd, transformers crops elsewhere
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 224})(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess.clip_pixels([image])[0], theirs, atol=1e-5)


@pytest.mark.parity
def test_dino_features(vit_folder, torch):
    from transformers import ViTModel

    from editmgt_jax.evaluation.features import Dino

    picture = made.picture(2, (300, 200))
    values = by_hand(picture, 256, 224, preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD)[None]
    with torch.no_grad():
        states = ViTModel.from_pretrained(vit_folder, add_pooling_layer=False)(
            pixel_values=torch.from_numpy(values.astype(np.float32))
        )
    expected = states.last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(Dino(str(vit_folder)).images([picture]), expected, atol=1e-5)


@pytest.mark.parity
def test_structure_distance_of_the_last_keys(vit_folder, torch):
    from transformers import ViTModel

    from editmgt_jax.evaluation.features import Structure

    structure, model = Structure(str(vit_folder)), ViTModel.from_pretrained(vit_folder, add_pooling_layer=False)
    one, other = made.picture(4, (512, 512)), made.picture(5, (512, 512))

    def similarity(picture):
        array = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None]
        array = torch.nn.functional.interpolate(array, (224, 224), mode="bilinear", align_corners=False)
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        states = model(
            pixel_values=(array - mean[:, None, None]) / std[:, None, None], output_hidden_states=True
        ).hidden_states[-2]
        layer = model.layers[-1]
        keys = layer.attention.k_proj(layer.layernorm_before(states))[0]
        unit = keys / keys.norm(dim=1, keepdim=True)
        return unit @ unit.T

    with torch.no_grad():
        expected = float(torch.nn.functional.mse_loss(similarity(one), similarity(other)))
    assert structure.distance(one, other) == pytest.approx(expected, rel=1e-4)
    assert structure.distance(one, one) == 0


@pytest.mark.parity
def test_perfect_and_no_op_values_of_models(clip_folder, vit_folder, tmp_path, torch):
    from editmgt_jax.evaluation import evaluate
    from editmgt_jax.evaluation.features import Clip, Dino, Models
    from editmgt_jax.evaluation.protocols.table import open_protocol

    models = Models(clip=Clip(str(clip_folder)), dino=Dino(str(vit_folder)))
    data = made.emu(tmp_path / "data", generations=False)
    for number in range(5):
        made.save(made.picture(number), tmp_path / "outputs" / f"{number}.png")
    found = evaluate.evaluate(
        open_protocol("emu_paper"), data, tmp_path / "run", outputs=tmp_path / "outputs", models=models
    )
    figures = found["results"]["all"]["all"]
    assert figures["clip_i"]["mean"] == pytest.approx(1, abs=1e-6) and figures["dino"]["mean"] == pytest.approx(
        1, abs=1e-6
    )
    assert figures["clip_dir"]["n"] == 0  # the picture does not change
    assert -1 < figures["clip_t"]["mean"] < 1 and "patch 32" in found["models"]["clip"]
    assert len(found["differences"]) == 2 and "openai/clip-vit-base-patch32" in found["differences"][0]


@pytest.mark.parity
def test_a_model_that_is_not_there_is_one_line(tmp_path, torch):
    from editmgt_jax.errors import UserError
    from editmgt_jax.evaluation.features import Clip

    with pytest.raises(UserError, match="cannot be read"):
        Clip(str(tmp_path / "none"))
