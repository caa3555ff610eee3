import errno
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editmgt_jax import images

DICE = np.random.default_rng(0)


def noise_image(size=(40, 24)):
    return Image.fromarray(DICE.integers(0, 256, (size[1], size[0], 3), np.uint8))


def quarters(*colours):
    """A 20 x 20 picture of four colours: top left, top right, bottom left, bottom right."""
    pixels = np.array(colours, np.uint8).reshape(2, 2, 3)
    return Image.fromarray(pixels.repeat(10, axis=0).repeat(10, axis=1))


RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


class TestLoad:
    def test_rgb_comes_back_as_it_is(self, tmp_path):
        image = noise_image()
        image.save(tmp_path / "a.png")
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)):
            np.testing.assert_array_equal(np.asarray(images.load(source)), np.asarray(image))

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_16_bit_grey_is_scaled(self, tmp_path, suffix):
        values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        expected = np.round(values / 257.0)
        loaded = np.asarray(images.load(tmp_path / f"a.{suffix}"))
        np.testing.assert_array_equal(loaded, np.repeat(expected[..., None], 3, axis=2))

    @pytest.mark.parametrize(
        "array",
        [
            np.full((20, 20), 0.5, np.float32),
            np.full((20, 20, 3), 0.5),
            np.full((20, 20, 1), 32896, np.uint16),
            np.full((20, 20), 128, np.uint8),
        ],
    )
    def test_arrays_of_other_types(self, array):
        assert np.unique(np.asarray(images.load(array))).tolist() == [128]
        assert images.load(array).mode == "RGB"

    def test_bool_is_black_and_white(self):
        assert np.unique(np.asarray(images.load(np.eye(20, dtype=bool)))).tolist() == [0, 255]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
    def test_every_mode_becomes_rgb_of_the_same_colour(self, mode):
        grey = Image.new("RGB", (20, 20), "white")
        converted = (
            grey.convert("I").point(lambda v: v * 257, "I").convert(mode) if mode == "I;16" else grey.convert(mode)
        )
        if mode == "F":
            converted = Image.fromarray(np.asarray(converted) / 255)
        loaded = images.load(converted)
        assert loaded.mode == "RGB"
        assert np.asarray(loaded).min() >= 254

    def test_cmyk_file(self, tmp_path):
        Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
        np.testing.assert_allclose(np.asarray(images.load(tmp_path / "a.jpg")).mean((0, 1)), RED, atol=8)

    def test_alpha_is_put_on_white_and_said_so(self):
        image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
        image.paste((255, 0, 0, 255), (0, 0, 10, 20))
        with pytest.warns(UserWarning, match="transparent.*white"):
            loaded = np.asarray(images.load(image))
        np.testing.assert_array_equal(loaded[5, 5], RED)
        np.testing.assert_array_equal(loaded[5, 15], (255, 255, 255))

    def test_transparent_palette_colour(self, tmp_path):
        image = Image.new("P", (20, 20), 0)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.save(tmp_path / "a.png", transparency=0)
        with pytest.warns(UserWarning, match="a.png is partly transparent"):
            assert np.asarray(images.load(tmp_path / "a.png")).min() == 255

    def test_opaque_alpha_is_not_worth_a_word(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images.load(Image.new("RGBA", (20, 20), (1, 2, 3, 255)))

    def test_damaged_exif_is_ignored(self, tmp_path):
        exif = Image.Exif()
        exif[274], exif[271] = 6, "a camera"
        Image.fromarray(DICE.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
        whole = (tmp_path / "a.jpg").read_bytes()
        start = whole.index(b"Exif")
        for position in range(start, start + 48):
            damaged = bytearray(whole)
            damaged[position] ^= 0xFF
            (tmp_path / "b.jpg").write_bytes(bytes(damaged))
            assert sorted(images.load(tmp_path / "b.jpg").size) == [20, 30]

    @pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
    def test_exif_rotation(self, tmp_path, orientation, turns):
        upright = Image.fromarray(np.asarray(quarters(RED, GREEN, BLUE, GREY))[:, :18])
        stored = Image.fromarray(np.rot90(np.asarray(upright), -turns))
        exif = Image.Exif()
        exif[274] = orientation
        for name in ("a.png", "a.webp"):
            stored.save(tmp_path / name, exif=exif, lossless=True)
            loaded = images.load(tmp_path / name)
            np.testing.assert_array_equal(np.asarray(loaded), np.asarray(upright))
            np.testing.assert_array_equal(np.asarray(images.load(loaded)), np.asarray(upright))  # once, not twice

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing.png"):
            images.load(tmp_path / "nothing.png")
        with pytest.raises(FileNotFoundError, match="a folder is at"):
            images.load(tmp_path)

    def test_corrupt_and_truncated_files(self, tmp_path):
        (tmp_path / "text.png").write_text("not a picture")
        with pytest.raises(images.ImageError, match="text.png must be a picture"):
            images.load(tmp_path / "text.png")
        noise_image((64, 64)).save(tmp_path / "whole.png")
        (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
        with pytest.raises(images.ImageError, match="half.png must be a picture"):
            images.load(tmp_path / "half.png")

    @pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (15, 20), (100, 401)])
    def test_size_limits_are_stated(self, size):
        with pytest.raises(
            images.ImageError, match=f"at least 16 pixels.*at most 4 times.*{size[0]} x {size[1]} pixels"
        ):
            images.load(Image.new("RGB", size))

    def test_sizes_at_the_limits_are_fine(self):
        images.load(Image.new("RGB", (16, 64)))

    @pytest.mark.parametrize(
        "array",
        [np.zeros(5), np.zeros((20, 20, 2)), np.full((20, 20), 1.5), np.full((20, 20), np.nan), np.full((9, 9), -1)],
    )
    def test_arrays_that_are_no_picture(self, array):
        with pytest.raises(images.ImageError, match="the image"):
            images.load(array)


class TestMask:
    def test_white_may_change(self):
        mask = np.zeros((24, 40), np.uint8)
        mask[3:9, 4:20] = 255
        np.testing.assert_array_equal(images.load_mask(Image.fromarray(mask), (40, 24)), mask > 0)
        np.testing.assert_array_equal(images.load_mask(mask > 0, (40, 24)), mask > 0)

    def test_size_must_match(self):
        with pytest.raises(images.ImageError, match="40 x 24 pixels; the mask is 24 x 40 pixels"):
            images.load_mask(Image.new("L", (24, 40)), (40, 24))

    def test_one_pixel_opens_its_token_only(self):
        mask = np.zeros((24, 40), bool)
        mask[13, 22] = True
        expected = np.zeros((6, 10), bool)
        expected[3, 5] = True
        np.testing.assert_array_equal(images.mask_to_grid(mask, (6, 10)), expected)

    def test_picture_of_a_keep_mask_can_be_given_back(self):
        keep = DICE.random((6, 10)) < 0.5
        picture = images.mask_picture(keep, (41, 27))
        np.testing.assert_array_equal(images.load_mask(picture, (41, 27)), ~images.mask_to_pixels(keep, (41, 27)))
        same_grid = images.load_mask(images.mask_picture(keep, (40, 24)), (40, 24))
        np.testing.assert_array_equal(images.mask_to_grid(same_grid, (6, 10)), ~keep)


class TestGeometry:
    @pytest.mark.parametrize(
        "size, native, unit, expected",
        [
            ((500, 500), 64, 8, (64, 64)),
            ((4000, 3000), 64, 8, (72, 56)),
            ((3000, 4000), 64, 8, (56, 72)),
            ((1600, 400), 64, 8, (128, 32)),
            ((1920, 1080), 1024, 32, (1376, 768)),
            ((777, 777), 1024, 32, (1024, 1024)),
        ],
    )
    def test_working_size_golden(self, size, native, unit, expected):
        assert images.working_size(size, native, unit) == expected

    def test_working_size_keeps_area_and_aspect(self):
        for _ in range(200):
            width, height = DICE.integers(16, 64, 2).tolist()
            w, h = images.working_size((width, height), 1024, 32)
            assert w % 32 == h % 32 == 0
            assert abs(w * h / 1024**2 - 1) < 0.06
            assert abs(np.log(w / h * height / width)) < 0.06

    def test_pixels_and_back(self):
        image = noise_image()
        pixels = images.to_pixels(image, image.size)
        assert pixels.dtype == np.float32 and pixels.shape == (24, 40, 3) and 0 <= pixels.min() <= pixels.max() <= 1
        np.testing.assert_array_equal(np.asarray(images.to_image(pixels)), np.asarray(image))
        assert images.to_image(pixels, (61, 33)).size == (61, 33)


class TestComposite:
    """An input of noise and an edit that differs from it everywhere."""

    before = noise_image((80, 48))
    after = Image.fromarray(255 - np.asarray(before))

    def mix(self, held, mask=None):
        return np.asarray(images.composite(self.before, self.after, held, mask))

    def test_sides_of_the_seam(self):
        held = np.zeros((6, 10), bool)
        held[:, 5:] = True  # from x = 40, cells of 8
        mixed = self.mix(held)
        np.testing.assert_array_equal(mixed[:, :40], np.asarray(self.after)[:, :40])
        np.testing.assert_array_equal(mixed[:, 48:], np.asarray(self.before)[:, 48:])
        seam = mixed[:, 40:48].astype(float)
        before, after = (np.asarray(x, float)[:, 40:48] for x in (self.before, self.after))
        share = np.mean((seam - before) * (after - before), axis=(0, 2)) / np.mean((after - before) ** 2, axis=(0, 2))
        assert (np.diff(share) < 0).all() and share[0] < 1 and share[-1] > 0

    def test_all_held_is_the_input(self):
        np.testing.assert_array_equal(self.mix(np.ones((6, 10), bool)), np.asarray(self.before))

    def test_none_held_is_the_edit(self):
        np.testing.assert_array_equal(self.mix(np.zeros((6, 10), bool)), np.asarray(self.after))

    def test_no_pixel_outside_a_mask_changes(self):
        mask = DICE.random((48, 80)) < 0.9
        mixed = self.mix(np.zeros((6, 10), bool), mask)
        np.testing.assert_array_equal(mixed[~mask], np.asarray(self.before)[~mask])

    def test_inside_of_a_mask_is_the_edit(self):
        mask = np.zeros((48, 80), bool)
        mask[10:30, 10:60] = True
        mixed = self.mix(np.zeros((6, 10), bool), mask)
        np.testing.assert_array_equal(mixed[12:28, 12:58], np.asarray(self.after)[12:28, 12:58])


class TestPictures:
    def test_overlay_is_bright_where_relevance_is_high(self):
        relevance = np.zeros((6, 10), np.float32)
        relevance[:, 7:] = 1
        shown = np.asarray(images.overlay(Image.new("RGB", (80, 48), "grey"), relevance), int).sum(-1)
        assert shown.shape == (48, 80)
        assert shown[:, 70:].min() > shown[:, :40].max() + 100

    def test_hidden_tokens_are_grey(self):
        hidden = np.zeros((6, 10), bool)
        hidden[0, 1] = True
        pixels = images.hide(np.ones((24, 40, 3), np.float32), hidden)
        assert (pixels[:4, 4:8] == 0.5).all()
        assert (pixels == 0.5).sum() == 4 * 4 * 3

    def test_strip_holds_every_frame(self):
        frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE, RED)]
        sheet = np.asarray(images.strip(frames, columns=3))
        for colour, count in ((RED, 2), (GREEN, 1), (BLUE, 1)):
            assert (sheet == colour).all(-1).sum() == 200 * count

    def test_strip_scales_large_frames(self):
        assert images.strip([Image.new("RGB", (2000, 1000))], side=100).size == (108, 72)


class TestSave:
    @pytest.mark.parametrize("suffix", sorted(images.FORMATS))
    def test_every_format_can_be_read_again(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix.upper()}"
        images.save(Image.new("RGB", (20, 20), RED), path)
        np.testing.assert_allclose(np.asarray(images.load(path)).mean((0, 1)), RED, atol=3)
        assert list(tmp_path.iterdir()) == [path]

    def test_gif_has_all_frames(self, tmp_path):
        images.save_steps([Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)], tmp_path / "a.gif")
        with Image.open(tmp_path / "a.gif") as animation:
            assert animation.n_frames == 3
            assert animation.info["duration"] == 150

    def test_unknown_suffix_names_the_supported_ones(self, tmp_path):
        with pytest.raises(images.ImageError, match=r"one of \.png, \.jpg.*got '\.xyz'"):
            images.check_output(tmp_path / "a.xyz")
        with pytest.raises(images.ImageError, match="got 'none'"):
            images.check_output(tmp_path / "a")
        with pytest.raises(images.ImageError, match=r"\.gif"):
            images.save(Image.new("RGB", (20, 20)), tmp_path / "a.gif")

    def test_folder_must_exist_and_take_files(self, tmp_path):
        with pytest.raises(images.ImageError, match="there is no .*missing"):
            images.check_output(tmp_path / "missing" / "a.png")
        (tmp_path / "a.png").mkdir()
        with pytest.raises(images.ImageError, match="is a folder"):
            images.check_output(tmp_path / "a.png")
        with pytest.raises(images.ImageError, match="cannot write"):
            images.check_output(tmp_path / ("a" * 250 + ".png"))

    def test_check_leaves_nothing_and_touches_nothing(self, tmp_path):
        (tmp_path / "a.png").write_text("old")
        images.check_output(tmp_path / "a.png")
        images.check_output(tmp_path / "b.png")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
        assert (tmp_path / "a.png").read_text() == "old"

    def test_a_failed_write_keeps_the_old_file(self, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_text("old")

        write = Path.write_bytes

        def fail(self, data):
            write(self, bytes(data)[:9])
            if len(data) > 9:
                raise OSError(errno.ENOSPC, "disk full")

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match=r"cannot write .*a.png: disk full after 9 bytes, \d+ are free"):
            images.save(Image.new("RGB", (20, 20)), tmp_path / "a.png")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
