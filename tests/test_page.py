"""The page's sessions, controls and rules, without a browser; `test_page_browser.py` has one."""

import asyncio
import json
import re

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from test_pipeline import INSTRUCTION, picture

from editmgt_jax import images
from editmgt_jax.pipeline.recipes import picture_hash, read_recipe
from editmgt_jax.serving.app import Server, make_app
from editmgt_jax.serving.engine import Engine
from editmgt_jax.serving.errors import ApiError
from editmgt_jax.serving.limits import Limits

gradio = pytest.importorskip("gradio", reason="the page needs pip install '.[page]'")

from editmgt_jax.serving.page import EXAMPLES, PICTURES, Page  # noqa: E402
from editmgt_jax.serving.session import Session, brushed, region  # noqa: E402


@pytest.fixture(scope="module")
def page(pipe, tmp_path_factory):
    server = Server(Engine(pipe, Limits(wait_seconds=0, pixels=250 * 250)), "tiny", ["secret"])
    yield Page(server, tmp_path_factory.mktemp("page"))
    server.engine.close()


@pytest.fixture(scope="module")
def client(page):
    with TestClient(make_app(page._server, page)) as client:
        yield client


def layer(size=(32, 32)):
    pixels = np.zeros((*size[::-1], 4), np.uint8)
    pixels[:10, :, 0] = pixels[:10, :, 3] = 100
    return Image.fromarray(pixels)


def edit(page, session, brush=(), threshold=0.0, instruction=INSTRUCTION, **changed):
    names = [setting.name for setting in page._controls._settings]
    values = [changed.get(name, value) for name, value in zip(names, page._controls._defaults, strict=True)]
    call = page._edit(session, {"layers": brush}, instruction, "", "", 3, True, threshold, *values)
    return asyncio.run(call)


def taken(page, tmp_path, image):
    image.save(tmp_path / "in.png")
    session = Session(tmp_path)
    page._take(tmp_path / "in.png", session)
    return session


# ---- edits


def test_an_edit_is_that_of_the_pipeline_and_its_file_says_how(page, pipe, tmp_path):
    session = taken(page, tmp_path, picture())
    edit(page, session, [layer()], threshold=0.3, guidance_scale=3.0)
    (edited,) = session.edits
    mask = np.zeros((32, 32), bool)
    mask[:10] = True
    settings = {"hold_threshold": 0.3, "guidance_scale": 3.0}
    expected = pipe(picture(), INSTRUCTION, mask=mask, seed=3, **settings)
    np.testing.assert_array_equal(np.asarray(Image.open(edited.result)), np.asarray(expected.images[0]))
    recipe = read_recipe(edited.result)
    assert recipe.image == picture_hash(images.load(tmp_path / "in.png", keep_profile=True))
    assert recipe.call["guidance_scale"] == 3.0 and (recipe.call["mask"] == mask).all() and len(edited.steps) == 4
    _, ((opacity, _),) = region(edited, 0.3)
    held = images.mask_to_pixels(expected.keep_mask[0], (32, 32))
    np.testing.assert_array_equal(opacity[12:] > 0, held[12:])


def test_the_model_s_own_values_are_not_sent(page):
    assert page._controls.fields(page._controls._defaults) == {}
    changed = [7.0 if setting.name == "steps" else "" for setting in page._controls._settings]
    assert page._controls.fields(changed) == {"steps": "7"}


def test_errors_are_said_to_the_visitor(page, tmp_path):
    def said(text, *arguments, **named):
        with pytest.raises(gradio.Error, match=text):
            edit(page, *arguments, **named)

    session = taken(page, tmp_path, picture())
    said("there is no picture", Session(tmp_path))
    said("prompt must say what to change", session, instruction=" ")
    said("layers must be", session, layers="a")
    said("the brushed mask has 16 x 16 pixels", session, [layer((16, 16))])
    with pytest.raises(gradio.Error, match="at most 62500 pixels"):
        taken(page, tmp_path, picture((300, 300)))
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(gradio.Error, match="must be a picture"):
        page._take(tmp_path / "no.png", session)


def test_a_session_forgets_its_oldest_edits_and_leaves_no_file(page, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("editmgt_jax.serving.session.KEPT", 2)
    session = taken(page, tmp_path, picture())
    call = {"image": picture(), "instruction": INSTRUCTION}
    result = pipe(**call)
    for seed in range(3):
        session.add(call | {"seed": seed}, result, [picture()] * 2, "weights", [])
    assert [read_recipe(edited.result).call["seed"] for edited in session.edits] == [1, 2]
    assert len(list(session.folder.glob("*-step-1.png"))) == 2
    folder = session.folder
    session.close()
    assert not folder.exists()


def test_what_is_brushed():
    assert brushed([None, Image.new("RGBA", (4, 4))], (4, 4)) is None
    assert np.asarray(brushed([layer()], (32, 32))).sum() == 320
    with pytest.raises(ApiError, match="brush again"):
        brushed([layer()], (32, 31))


def test_the_examples_are_there():
    assert all(images.load(PICTURES / name).size[0] >= 128 for name, _ in EXAMPLES)


# ---- the server


def test_a_browser_asks_for_the_key(client):
    answer = client.get("/")
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic realm=")
    assert client.get("/", auth=("anyone", "wrong")).status_code == 401
    page = client.get("/", auth=("anyone", "secret"))
    assert page.status_code == 200 and "Edit a picture" in page.text
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', page.text)
    assert not [address for address in loaded if not address.startswith("http://testserver")]
    assert client.get("/v1/else", auth=("anyone", "secret")).json()["error"]["code"] == "invalid_request"


def test_no_address_or_path_of_a_visitor_is_opened(client, page, tmp_path):
    (tmp_path / "private.png").write_bytes(b"x")
    functions = page.app.routes[0].app.get_blocks().fns
    (take,) = [number for number, function in functions.items() if function.fn == page._take]
    for path in ("http://127.0.0.1:9/a.png", str(tmp_path / "private.png")):
        asked = {
            "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, None],
            "fn_index": take,
            "session_hash": "s",
        }
        key = {"Authorization": "Bearer secret"}
        assert client.post("/gradio_api/queue/join", json=asked, headers=key).status_code == 200
        lines = client.get("/gradio_api/queue/data?session_hash=s", headers=key).text.splitlines()
        (end,) = [one for line in lines if line and (one := json.loads(line[6:]))["msg"] == "process_completed"]
        assert not end["success"], end
