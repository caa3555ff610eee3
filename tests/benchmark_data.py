"""Tiny data sets in the layout of each benchmark, from random pictures."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A smooth random RGB picture of `size` (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def png(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """The bytes of `picture` as a PNG file."""
    import io

    file = io.BytesIO()
    picture(seed, size).save(file, "PNG")
    return file.getvalue()


def save(image: Image.Image, path: Path) -> None:
    """Writes a picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def magicbrush(folder: Path, turns: tuple[int, ...] = (1, 3), captions: str = "local_captions.json") -> Path:
    """Sessions 100, 101, ... of so many turns; the upper left quarter is what a mask frees."""
    sessions, described = {}, {}
    for number, count in enumerate(turns):
        name, before = str(100 + number), None
        sessions[name], described[name] = [], {}
        for turn in range(1, count + 1):
            before = before or f"{name}-input.png"
            after, mask = f"{name}-output{turn}.png", f"{name}-mask{turn}.png"
            images = folder / "images" / name
            save(picture(10 * number), images / f"{name}-input.png")
            save(picture(10 * number + turn), images / after)
            hole = picture(10 * number).convert("RGBA")
            alpha = np.full((SIDE, SIDE), 255, np.uint8)
            alpha[: SIDE // 2, : SIDE // 2] = 0
            hole.putalpha(Image.fromarray(alpha))
            save(hole, images / mask)
            sessions[name].append({"input": before, "mask": mask, "output": after, "instruction": "make the car red"})
            described[name] |= {before: f"picture {turn - 1}", after: f"picture {turn}"}
            before = after
    (folder / "edit_sessions.json").write_text(json.dumps(sessions))
    (folder / captions).write_text(json.dumps(described))
    return folder


def magicbrush_outputs(folder: Path, data: Path, side: str) -> Path:
    """The `side` ("output" or "input") of every turn under the names of edited pictures."""
    for name, turns in json.loads((data / "edit_sessions.json").read_text()).items():
        for number, turn in enumerate(turns, 1):
            image = Image.open(data / "images" / name / turn[side])
            names = [f"{name}_1"] if number == 1 else [f"{name}_inde_{number}", f"{name}_iter_{number}"]
            for each in names:
                save(image, folder / name / f"{each}.png")
    return folder


def pie(folder: Path, count: int = 3) -> Path:
    """Edits of 512 x 512 pixels whose mask is rows 100 to 199; the last one's is the whole picture."""
    items = {}
    for number in range(count):
        path = f"{number}_type/{number:012}.png"
        save(picture(number, (512, 512)), folder / "annotation_images" / path)
        runs = [0, 512 * 512] if number == count - 1 else [100 * 512, 100 * 512]
        items[f"{number:012}"] = {
            "image_path": path,
            "original_prompt": "a [red] car",
            "editing_prompt": "a [blue] car",
            "editing_instruction": "make the car red",
            "editing_type_id": str(number % 10),
            "mask": runs,
        }
    (folder / "mapping_file.json").write_text(json.dumps(items))
    return folder
