"""Pictures and masks in every form that users have them, and that their colours and their meaning survive."""

import base64
import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image, ImageCms

from editmgt_jax import images

DICE = np.random.default_rng(0)
RGB = DICE.integers(0, 256, (24, 40, 3), np.uint8)
REGION = np.zeros((24, 40), bool)
REGION[:, 20:] = True


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


DATA = png(Image.fromarray(RGB))


def profile(primaries=((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), gamma=2.2):
    """A small ICC matrix profile; by default with the primaries of Display P3."""
    fixed = lambda *values: struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249), b"cprt": b"text\0\0\0\0none\0"}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(78)
    for letter, xyz in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*xyz)
        tags[letter + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    table, data, offset = b"", b"", 132 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", offset + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", offset + len(data), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp"
    )
    head += bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


P3 = profile()


class Wrapped:
    """What a tensor of another library offers."""

    def __array__(self, dtype=None, copy=None):
        return RGB


class Raising:
    """Of another library, and of no use."""

    def read(self, *_):
        raise RuntimeError("gone")


class NoArray:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on another device")


class TestSources:
    @pytest.mark.parametrize(
        "source",
        [
            DATA,
            bytearray(DATA),
            memoryview(DATA),
            io.BytesIO(DATA),
            "data:image/png;base64," + base64.b64encode(DATA).decode(),
            Wrapped(),
        ],
        ids=lambda source: type(source).__name__,
    )
    def test_forms_of_one_picture(self, source):
        np.testing.assert_array_equal(np.asarray(images.load(source)), RGB)

    def test_files_are_read_from_their_start(self, tmp_path):
        (tmp_path / "a.png").write_bytes(DATA)
        with open(tmp_path / "a.png", "rb") as file:
            file.seek(9)
            np.testing.assert_array_equal(np.asarray(images.load(file)), RGB)
        with (
            open(tmp_path / "a.png", encoding="latin-1") as file,
            pytest.raises(images.ImageError, match="binary mode"),
        ):
            images.load(file)
        with pytest.raises(images.ImageError, match="open file.*closed"):
            images.load(file)

    def test_a_pipe_is_read_to_its_end(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(DATA,))
        writer.start()
        np.testing.assert_array_equal(np.asarray(images.load(tmp_path / "pipe")), RGB)
        writer.join()

    def test_a_pipe_without_a_writer_is_given_up(self, tmp_path, monkeypatch):
        monkeypatch.setattr("editmgt_jax.images.sources.WAIT", 0.1)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(images.ImageError, match="pipe to which nothing was written"):
            images.load(tmp_path / "pipe")

    @pytest.mark.parametrize(
        "source, message",
        [
            ("https://example.org/a.png", "a file on this machine; got the address https://example.org/a.png"),
            ("/dev/zero", "/dev/zero is a device"),
            ("data:image/png;base64,AAAA", "the image must be a picture"),
            ("data:image/png;base64,A", "damaged data URI"),
            (b"", "the image must be a picture; it is empty"),
            ("a\0b.png", r"image a\\x00b.png"),
            ("line\nbreak.png", r"none at line\\nbreak.png"),
            ("x" * 5000, "cannot read the image xxx.*too long"),
            (5, "the image must be a path, .*; got int"),
            (None, "got NoneType"),
            ([RGB], "got list"),
            (Image.Image, "got type"),
            ({"background": DATA}, "got dict"),
            (Raising(), "cannot read the image from the open file: gone"),
            (Raising, "got type"),
            (NoArray(), "NoArray gives no array: on another device"),
        ],
    )
    def test_what_is_no_picture_is_named_in_one_line(self, source, message):
        with pytest.raises((images.ImageError, FileNotFoundError), match=message) as caught:
            images.load(source)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400

    @pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif"])
    def test_other_frames_are_said(self, tmp_path, suffix):
        frames = [Image.fromarray(np.roll(RGB, shift, 1)).quantize(256) for shift in (0, 1, 2)]
        frames = frames if suffix == "gif" else [frame.convert("RGB") for frame in frames]
        path = tmp_path / f"a.{suffix}"
        frames[0].save(
            path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {})
        )
        for source in (path, path.read_bytes(), Image.open(path)):
            with pytest.warns(UserWarning, match="has 3 frames or pages; frame 1 alone"):
                loaded = images.load(source)
            np.testing.assert_array_equal(np.asarray(loaded), np.asarray(frames[0].convert("RGB")))

    @pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png", "a.webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied_once_however_it_is_opened(self, tmp_path, name, orientation):
        smooth = Image.fromarray(RGB[:4, :4]).resize((40, 24), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[274] = orientation
        smooth.save(tmp_path / name, exif=exif, quality=100)
        stored = np.asarray(smooth)
        turned = stored.swapaxes(0, 1) if orientation > 4 else stored
        turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
        turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
        for source in (tmp_path / name, (tmp_path / name).read_bytes(), Image.open(tmp_path / name)):
            loaded = images.load(source)
            assert np.abs(np.asarray(loaded, int) - turned).mean() < 8
            np.testing.assert_array_equal(np.asarray(images.load(loaded)), np.asarray(loaded))


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint16, np.uint64, np.float16, np.float64])
    def test_values_of_8_bits_of_any_type(self, dtype):
        np.testing.assert_array_equal(np.asarray(images.load(RGB.astype(dtype))), RGB)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
    def test_floats_in_0_1(self, dtype):
        loaded = np.asarray(images.load((RGB / 255).astype(dtype)), int)
        assert np.abs(loaded - RGB).max() <= (1 if dtype == ml_dtypes.bfloat16 else 0)

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
    def test_16_bits(self, dtype):
        np.testing.assert_array_equal(np.asarray(images.load(RGB.astype(dtype) * 257)), RGB)

    @pytest.mark.parametrize(
        "array",
        [
            RGB / 127.5 - 1,
            RGB / 255 * 1.5,
            RGB * 1000.0,
            -RGB.astype(int),
            RGB.astype(int) * 1000,
            RGB.astype(complex),
            RGB.astype(object),
            RGB.astype(str),
            np.full((24, 40), np.inf),
            RGB.transpose(2, 0, 1),
        ],
        ids=lambda array: f"{array.dtype} {array.shape}",
    )
    def test_others_are_refused(self, array):
        with pytest.raises(images.ImageError, match="^the image"):
            images.load(array)


class TestTransparency:
    @pytest.mark.parametrize("grey", [9, 9 * 257, 300])
    def test_one_grey_of_16_bits(self, tmp_path, grey):
        values = np.where(REGION, grey, 40000).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png", transparency=9 if grey != 300 else 300)
        with pytest.warns(UserWarning, match="partly transparent"):
            loaded = np.asarray(images.load(tmp_path / "a.png"))
        np.testing.assert_array_equal(loaded[..., 0], np.where(REGION, 255, 156))

    def test_one_colour_of_16_bits(self, tmp_path):
        data = png(Image.fromarray(np.where(REGION[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)))
        chunk = b"tRNS" + struct.pack(">3H", 255, 0, 0)
        data = data.replace(
            data[33:37], struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:37], 1
        )
        opened = Image.open(io.BytesIO(data))
        opened.info["transparency"] = (0xFFFF, 0, 0)  # as Pillow has it of files of 16 bits
        with pytest.warns(UserWarning, match="partly transparent"):
            loaded = np.asarray(images.load(opened))
        assert (loaded[REGION] == 255).all() and (loaded[~REGION] == (0, 0, 255)).all()


class TestMasks:
    size = (40, 24)

    @pytest.mark.parametrize(
        "dtype", [bool, np.uint8, np.int8, np.int64, np.uint16, np.float16, np.float32, np.float64]
    )
    def test_0_and_1_of_any_type(self, dtype):
        np.testing.assert_array_equal(images.load_mask(REGION.astype(dtype), self.size), REGION)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint16, np.float32])
    def test_0_and_255_of_any_type(self, dtype):
        np.testing.assert_array_equal(images.load_mask(np.where(REGION, 255, 0).astype(dtype), self.size), REGION)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I", "F", "I;16", "LA", "RGBA"])
    @pytest.mark.parametrize("white", [1, 255])
    def test_pictures_of_any_mode(self, mode, white):
        white = 255 if mode in ("1", "P", "CMYK") else white  # that have no other values
        mask = Image.fromarray(np.where(REGION, white, 0).astype(np.uint8))
        mask = mask.convert("I").convert(mode) if mode == "I;16" else mask.convert(mode)
        np.testing.assert_array_equal(images.load_mask(mask, self.size), REGION)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
    def test_a_hole_is_what_may_change(self, tmp_path, mode):
        picture = Image.fromarray(RGB // 2)
        if mode in ("RGBA", "LA"):
            picture = picture.convert(mode)
            picture.putalpha(Image.fromarray(np.where(REGION, 0, 255).astype(np.uint8)))
            picture.save(tmp_path / "a.png")
        elif mode == "P":
            indices = np.where(REGION, 0, 1 + RGB[..., 0] % 3).astype(np.uint8)
            picture = Image.fromarray(indices, "P")
            picture.putpalette([200, 0, 0, 0, 0, 255, 9, 9, 9, 255, 255, 255])
            picture.save(tmp_path / "a.png", transparency=0)
        else:
            pixels = np.asarray(picture).copy()
            pixels[REGION] = (1, 255, 3)
            Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 255, 3))
        np.testing.assert_array_equal(images.load_mask(tmp_path / "a.png", self.size), REGION)

    def test_white_on_nothing_is_ambiguous(self):
        layer = Image.new("RGBA", self.size, (255, 255, 255, 0))
        layer.paste((255, 255, 255, 255), (20, 0, 40, 24))
        with pytest.raises(images.ImageError, match="transparent parts or its white ones; the mask has both"):
            images.load_mask(layer, self.size)

    def test_nothing_and_everything_are_said(self):
        with pytest.raises(images.ImageError, match="must be white.*its brightest is 100 of 255"):
            images.load_mask(Image.new("L", self.size, 100), self.size)
        assert not images.load_mask(~REGION & REGION, self.size, may_be_empty=True).any()
        with pytest.warns(UserWarning, match="the mask is full"):
            assert images.load_mask(Image.new("L", self.size, 255), self.size).all()

    def test_a_saved_mask_opens_the_tokens_that_it_shows(self):
        for _ in range(100):
            grid = tuple(DICE.integers(2, 20, 2))
            size = tuple(int(DICE.integers(cells, 90)) for cells in reversed(grid))
            keep = DICE.random(grid) < 0.5
            keep[0, 0], keep[0, 1] = True, False
            mask = images.load_mask(images.mask_picture(keep, size), size)
            np.testing.assert_array_equal(images.mask_to_grid(mask, grid), ~keep)

    def test_each_pixel_of_a_small_picture_opens_the_tokens_in_it(self):
        np.testing.assert_array_equal(images.mask_to_grid(np.array([[True, False]]), (2, 4)), [[1, 1, 0, 0]] * 2)


class TestFill:
    def test_what_is_under_the_mask_has_no_influence(self):
        filled = []
        for colour in ((255, 0, 0), (0, 0, 255)):
            pixels = RGB.copy()
            pixels[REGION] = colour
            filled.append(np.asarray(images.fill(Image.fromarray(pixels), REGION)))
        np.testing.assert_array_equal(*filled)
        np.testing.assert_array_equal(filled[0][~REGION], RGB[~REGION])

    def test_the_fill_continues_the_surroundings(self, monkeypatch):
        monkeypatch.setattr("editmgt_jax.images.filling.COARSE", 300)
        ramp = np.linspace(0, 255, 40).round().astype(np.uint8)[None, :, None].repeat(24, 0).repeat(3, 2)
        hole = np.zeros((24, 40), bool)
        hole[4:20, 12:28] = True
        pixels = np.where(hole[..., None], np.uint8(255), ramp)
        filled = np.asarray(images.fill(Image.fromarray(pixels), hole), int)
        assert np.abs(filled - ramp)[hole].mean() < 35 and filled[hole].std() > 10
        assert np.unique(np.asarray(images.fill(Image.fromarray(RGB), np.ones((24, 40), bool)))).tolist() == [128]


class TestProfiles:
    picture = Image.new("RGB", (40, 24), (230, 60, 40))
    seen = ImageCms.profileToProfile(picture, ImageCms.ImageCmsProfile(io.BytesIO(P3)), ImageCms.createProfile("sRGB"))

    def test_colours_are_those_that_are_seen(self):
        data = png(self.picture, icc_profile=P3)
        for source in (data, Image.open(io.BytesIO(data))):
            np.testing.assert_array_equal(np.asarray(images.load(source)), np.asarray(self.seen))
            own = images.load(source, keep_profile=True)
            np.testing.assert_array_equal(np.asarray(own), np.asarray(self.picture))
            np.testing.assert_allclose(images.to_pixels(own, own.size) * 255, np.asarray(self.seen), atol=1e-3)

    def test_there_and_back(self):
        smooth = Image.fromarray(RGB // 2 + 60)
        back = images.to_srgb(images.from_srgb(smooth, P3))
        assert np.abs(np.asarray(back, int) - np.asarray(smooth, int)).max() <= 2
        assert images.from_srgb(smooth, None) is smooth

    def test_the_profile_of_srgb_changes_nothing(self):
        data = png(Image.fromarray(RGB), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        np.testing.assert_array_equal(np.asarray(images.load(data)), RGB)

    def test_a_profile_that_does_not_fit_is_ignored_and_said(self):
        for bad in (b"nonsense", P3[:200]):
            with pytest.warns(UserWarning, match="colour profile of the image is ignored"):
                np.testing.assert_array_equal(np.asarray(images.load(png(Image.fromarray(RGB), icc_profile=bad))), RGB)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
    def test_files_look_the_same_whatever_they_can_hold(self, tmp_path, suffix):
        own = images.load(png(self.picture, icc_profile=P3), keep_profile=True)
        images.save(own, tmp_path / f"a.{suffix}")
        assert np.abs(np.asarray(images.load(tmp_path / f"a.{suffix}"), int) - np.asarray(self.seen)).max() <= 3


class TestFiles:
    def test_a_jpeg_keeps_the_detail_of_colours(self, tmp_path):
        lines = np.zeros((24, 40, 3), np.uint8)
        lines[:, ::2], lines[:, 1::2] = (200, 30, 30), (30, 30, 200)
        images.save(Image.fromarray(lines), tmp_path / "a.jpg")
        assert np.abs(np.asarray(Image.open(tmp_path / "a.jpg"), int) - lines).mean() < 3

    def test_sides_that_a_format_cannot_hold(self, tmp_path):
        images.check_size_of(tmp_path / "a.webp", (16383, 5000))
        for name, size in (("a.webp", (16384, 5000)), ("a.jpg", (5000, 65501))):
            with pytest.raises(images.ImageError, match=f"at most .* pixels; .*{name} would be .*take .png"):
                images.check_size_of(tmp_path / name, size)

    def test_inputs_are_not_overwritten(self, tmp_path):
        (tmp_path / "a.png").write_bytes(DATA)
        (tmp_path / "link.png").symlink_to("a.png")
        os.link(tmp_path / "a.png", tmp_path / "hard.png")
        for name in ("a.png", "link.png", "hard.png", "../" + tmp_path.name + "/a.png"):
            with pytest.raises(images.ImageError, match="must not replace what is read"):
                images.check_distinct([tmp_path / name], [tmp_path / "a.png"])
        images.check_distinct([tmp_path / "b.png"], [tmp_path / "a.png"])

    def test_large_pictures_are_said_and_huge_ones_refused(self):
        with pytest.warns(UserWarning, match="has 52 million pixels"):
            images.load(png(Image.new("1", (8000, 6500))))
        with warnings.catch_warnings(), pytest.raises(images.ImageError, match="at most 178956970 pixels"):
            warnings.simplefilter("ignore")
            images.check_size((20000, 10000))


def test_other_names_of_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    for path in (str(tmp_path / "a.png"), Path(tmp_path / "a.png"), os.scandir(tmp_path).__next__()):
        np.testing.assert_array_equal(np.asarray(images.load(path)), RGB)
