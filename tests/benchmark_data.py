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


def write_parquet(path: Path, entries: list[dict], pictures: tuple[str, ...]) -> None:
    """Writes entries, two in a row group; columns `pictures` are structs of bytes and path, as `datasets` writes them."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        name: pyarrow.array([{"bytes": e[name], "path": None} for e in entries], struct)
        if name in pictures
        else [e[name] for e in entries]
        for name in entries[0]
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def emu(folder: Path, generations: bool, count: int = 5) -> Path:
    """Two splits; as in the real sets, the test set is called `validation` in the copy with generations."""
    for split, first in (("test", 0), ("validation", 100)):
        entries = [
            {
                "instruction": "make the car red",
                "image": png(number),
                "task": ("local", "style")[number % 2],
                "split": split,
                "idx": first + number,
                "hash": f"{number:x}",
                "input_caption": f"picture {number}",
                "output_caption": f"edited picture {number}",
            }
            | ({"edited_image": png(50 + number)} if generations else {})
            for number in range(count)
        ]
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", entries, ("image", "edited_image"))
    return folder


def anybench(folder: Path, kinds: tuple[str, ...] = ("add", "style_change", "visual_depth"), count: int = 2) -> Path:
    """Below `folder`/dataset: the benchmark's folder is dataset/anybench, files are named from dataset."""
    for index, kind in enumerate(kinds):
        items = []
        for number in range(count):
            name = f"{kind}_{number}.png"
            paths = {side: f"anybench/{kind}/{side}/{name}" for side in ("images", "edited")}
            save(picture(10 * index + number), folder / "dataset" / paths["images"])
            save(picture(10 * index + number + 5), folder / "dataset" / paths["edited"])
            item = {"edit": "make the car red", "input": "a car", "output": "a red car", "edit_type": kind}
            items.append(item | {"image_file": paths["images"], "edited_file": paths["edited"]})
        (folder / "dataset" / "anybench" / kind / "edit_result.json").write_text(json.dumps(items))
    return folder / "dataset" / "anybench"


def gedit(folder: Path, groups: dict[str, int]) -> Path:
    """So many English cases of each group, and one Chinese one; every second case has Intersection_exist."""
    entries = []
    for group, count in groups.items():
        for number in range(count):
            entries.append(
                {
                    "task_type": group,
                    "key": f"{group}{number}",
                    "instruction": "make the car red",
                    "instruction_language": "en",
                    "input_image": png(number, (40, 20)),
                    "input_image_raw": png(number, (80, 40)),
                    "Intersection_exist": number % 2 == 0,
                }
            )
    entries.append(entries[0] | {"key": "chinese", "instruction_language": "cn"})
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", entries, ("input_image", "input_image_raw"))
    return folder


def imgedit(folder: Path, kinds: tuple[str, ...] = ("adjust", "adjust", "style"), prompts: bool = True) -> Path:
    """One edit of each kind; keys are 1082, 1083, ..."""
    items = {}
    for number, kind in enumerate(kinds):
        save(picture(number), folder / "singleturn" / "animal" / f"{number}.jpg")
        items[str(1082 + number)] = {"id": f"animal/{number}.jpg", "prompt": "make the car red", "edit_type": kind}
    (folder / "basic_edit.json").write_text(json.dumps(items))
    if prompts:
        (folder / "prompts.json").write_text(json.dumps({kind: f"Rate {kind}: <edit_prompt>" for kind in kinds}))
    return folder


def geditbench_v2(folder: Path, systems: tuple[str, ...] = ("BAGEL", "FLUX"), count: int = 4) -> Path:
    """Queries color_alter_000000, ... with a picture of every system."""
    lines = []
    for number in range(count):
        key = f"color_alter_{number:06}"
        save(picture(number), folder / "images" / "source" / f"{key}.png")
        candidates = []
        for index, system in enumerate(systems):
            path = f"images/edited/{system}/{key}.png"
            save(picture(100 * (index + 1) + number), folder / path)
            candidates.append({"model": system, "image": path})
        item = {"key": key, "instruction": "make the car red", "source_image": f"images/source/{key}.png"}
        lines.append(json.dumps(item | {"candidates": candidates}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
