"""Examples of an ablation: scenes and folders of pairs; what is wrong with them is said in one line."""

import json

import numpy as np
import pytest
from PIL import Image

from editmgt_jax.ablation.config import Examples
from editmgt_jax.ablation.examples import ExampleSource
from editmgt_jax.data.scenes.source import SceneConfig, SceneSource
from editmgt_jax.errors import EditMGTError


def write_pairs(folder, size=(96, 64), mask_size=None, with_mask=True):
    """Five pairs whose middle square of 16 pixels turns white."""
    folder.mkdir()
    lines = []
    for index in range(5):
        source = np.full((size[1], size[0], 3), 40 * index, np.uint8)
        target, mask = source.copy(), np.zeros(size[::-1], np.uint8)
        box = slice(size[1] // 2 - 8, size[1] // 2 + 8), slice(size[0] // 2 - 8, size[0] // 2 + 8)
        target[box], mask[box] = 255, 255
        names = {"source": f"{index}_s.png", "target": f"{index}_t.png", "mask": f"{index}_m.png"}
        pictures = {"source": source, "target": target, "mask": mask}
        for name, pixels in pictures.items():
            image = Image.fromarray(pixels)
            image.resize(mask_size if name == "mask" and mask_size else image.size).save(folder / names[name])
        if not with_mask:
            del names["mask"]
        lines.append(json.dumps(names | {"instruction": f"make the middle {index} white"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_scenes_are_those_of_their_source():
    source = ExampleSource(Examples(count=6, objects="core", seed=3), 32)
    scenes = SceneSource(SceneConfig(32, "heldout", 3, categories=source.config.categories))
    for index in range(6):
        one, scene = source[index], scenes[index]
        np.testing.assert_array_equal(np.round(one.target * 255), scene["target"])
        np.testing.assert_array_equal(one.truth, scene["mask"])
        assert (one.instruction, one.query) == (scene["instruction"], scene["query"]) and one.query in one.instruction


@pytest.mark.parametrize("truth", ["mask", "difference"])
def test_pairs_of_a_folder_are_squares(tmp_path, truth):
    source = ExampleSource(Examples(folder=write_pairs(tmp_path / "pairs"), truth=truth, count=5), 32)
    expected = np.zeros((32, 32), bool)
    expected[12:20, 12:20] = True
    for index in range(5):
        one = source[index]
        assert one.source.shape == one.target.shape == (32, 32, 3) and one.query is None
        assert one.instruction == f"make the middle {index} white"
        assert (one.truth != expected).sum() <= 36  # the edge of the square, blurred by half
        assert one.truth[14:18, 14:18].all() and not one.truth[:10].any()


@pytest.mark.parametrize(
    "pairs, changes, message",
    [
        ({"mask_size": (64, 64)}, {}, "a mask must have the size of its image, 96 x 64"),
        ({"with_mask": False}, {}, "needs a mask with each pair; .* take 'difference'"),
        ({}, {"count": 6}, "examples.count must be at most the pairs in .*, 5; got 6"),
    ],
)
def test_wrong_pairs_are_one_line(tmp_path, pairs, changes, message):
    folder = write_pairs(tmp_path / "pairs", **pairs)
    with pytest.raises(EditMGTError, match=message) as error:
        ExampleSource(Examples(**{"folder": folder, "count": 5} | changes), 32)[0]
    assert "\n" not in str(error.value)
