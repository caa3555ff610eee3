"""The HTTP API on a tiny model: OpenAI's routes, batches, limits, errors, what happens when it ends."""

import base64
import io
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import openai
import pytest
from PIL import Image
from starlette.testclient import TestClient

from editmgt_jax import cli
from editmgt_jax.models.traces import traces
from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.serving import answers
from editmgt_jax.serving.app import Server, make_app
from editmgt_jax.serving.engine import Engine
from editmgt_jax.serving.limits import Limits
from editmgt_jax.serving.run import compile_for

EDITS = "/v1/images/edits"
INSTRUCTION = "make the car red"
LIMITS = Limits(
    body_bytes=200_000, pixels=256 * 256, fields=20, queue=3, batch=4, wait_seconds=0.2, request_seconds=200
)


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed=0, size=(32, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def mask(size=(32, 32)):
    white = np.zeros(size[::-1], np.uint8)
    white[: size[1] // 2] = 255
    return white


@pytest.fixture(scope="module")
def server(pipe):
    server = Server(Engine(pipe, LIMITS), "tiny")
    yield server
    server.engine.close()


@pytest.fixture(scope="module")
def client(server):
    with TestClient(make_app(server)) as client:
        yield client


def edit(client, *, image=None, files=(), **fields):
    files = [("image", ("a.png", image or png(picture()), "image/png")), *files]
    return client.post(EDITS, data={"prompt": INSTRUCTION, "num_inference_steps": "4"} | fields, files=files)


def pictures(answer):
    assert answer.status_code == 200, answer.text
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))) for each in answer.json()["data"]]


def test_an_edit_is_that_of_the_pipeline(client, pipe):
    answer = edit(
        client, n="2", seed="5", guidance_scale="3.5", layers="0 1", negative_prompt="remove the tree", query="car"
    )
    more = {"guidance_scale": 3.5, "layers": (0, 1), "negative_prompt": "remove the tree", "query": "car"}
    expected = pipe(picture(), INSTRUCTION, num_images=2, seed=5, steps=4, **more)
    for found, image in zip(pictures(answer), expected.images, strict=True):
        np.testing.assert_array_equal(found, np.asarray(image))
    said = answer.json()
    assert said["size"] == "32x32" and said["output_format"] == "png" and abs(said["created"] - time.time()) < 100


def test_a_hole_and_a_white_mask_mean_the_same(client, pipe):
    hole = picture().convert("RGBA")
    hole.putalpha(Image.fromarray(255 - mask()))
    found = [
        pictures(edit(client, files=[("mask", ("m.png", png(one), "image/png"))]))[0]
        for one in (hole, Image.fromarray(mask()))
    ]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(
        found[0], np.asarray(pipe(picture(), INSTRUCTION, mask=Image.fromarray(mask()), steps=4).images[0])
    )


def test_formats_sizes_and_urls(client):
    answer = edit(client, output_format="webp", output_compression="60", size="64x64", response_format="url")
    (entry,) = answer.json()["data"]
    file = client.get(entry["url"])
    assert file.headers["content-type"] == "image/webp" and answer.json()["size"] == "64x64"
    assert Image.open(io.BytesIO(file.content)).size == (64, 64)
    assert client.get("/v1/images/files/x.png").status_code == 404


def test_a_stream_has_steps_and_then_the_edit(client):
    answer = edit(client, stream="true", partial_images="2", seed="1")
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = [json.loads(block.split("data: ", 1)[1]) for block in answer.text.strip().split("\n\n")]
    assert [each["type"] for each in found] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [each.get("partial_image_index") for each in found] == [0, 1, None]
    last = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[-1]["b64_json"]))))
    np.testing.assert_array_equal(last, pictures(edit(client, seed="1"))[0])


def test_what_is_warm_compiles_for_no_request(pipe):
    warm = EditPipeline(pipe.model, batch_size=2)
    compile_for(warm, (32, 32))
    before = dict(traces)
    with TestClient(make_app(Server(Engine(warm, LIMITS), "tiny"))) as client:
        for fields in ({}, {"n": "2"}, {"stream": "true", "partial_images": "2"}):
            files = [("image", ("a.png", png(picture()), "image/png"))]
            assert client.post(EDITS, data={"prompt": INSTRUCTION} | fields, files=files).status_code == 200
    assert dict(traces) == before


def test_partial_steps_are_spread():
    assert answers.partial_steps(12, 3) == [2, 5, 8] and answers.partial_steps(4, 2) == [0, 2]
    assert answers.partial_steps(1, 3) == [] and answers.partial_steps(3, 3) == [0, 1]


def test_models_health_and_metrics(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/healthz").json()["status"] == "ok"
    edit(client)
    text = client.get("/metrics").text
    assert 'editmgt_requests_total{route="/v1/images/edits",status="200"}' in text and "editmgt_batches" in text


BAD = [
    ({"prompt": " "}, "prompt"),
    ({"prompt": "make the car\0red"}, "prompt"),
    ({"negative_prompt": "\0"}, "negative_prompt"),
    ({"n": "0"}, "n"),
    ({"n": "11"}, "n"),
    ({"n": "two"}, "n"),
    ({"n": "9" * 5000}, "n"),
    ({"size": "big"}, "size"),
    ({"size": "64x32"}, "size"),
    ({"seed": "-1"}, "seed"),
    ({"seed": "1.5"}, "seed"),
    ({"guidance_scale": "high"}, "guidance_scale"),
    ({"guidance_scale": "nan"}, "guidance_scale"),
    ({"num_inference_steps": "0"}, "num_inference_steps"),
    ({"steps": "3"}, "steps"),  # as num_inference_steps, too
    ({"layers": "a"}, "layers"),
    ({"hold_threshold": "7"}, "hold_threshold"),
    ({"output_format": "tiff"}, "output_format"),
    ({"output_compression": "101"}, "output_compression"),
    ({"response_format": "file"}, "response_format"),
    ({"background": "transparent"}, "background"),
    ({"stream": "maybe"}, "stream"),
    ({"stream": "true", "n": "2"}, "n"),
    ({"partial_images": "4"}, "partial_images"),
    ({"path": "/etc/passwd"}, "path"),
    ({"image_url": "http://example.com/a.png"}, "image_url"),
]


@pytest.mark.parametrize("fields, param", BAD, ids=lambda value: str(value)[:60])
def test_bad_fields_are_named(client, fields, param):
    answer = edit(client, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and len(error["message"]) < 600


def test_bad_forms_and_pictures(client):
    def refused(status, answer, code=None):
        error = answer.json()["error"]
        assert answer.status_code == status and error["message"] and (code is None or error["code"] == code), (
            answer.text
        )

    refused(404, edit(client, model="dall-e-9"), "model_not_found")
    refused(400, client.post(EDITS, data={"prompt": "x"}, files=[("mask", b"")]))
    refused(400, edit(client, image=b"no picture"), "invalid_image")
    refused(400, edit(client, image=png(picture())[:-400]), "invalid_image")
    refused(400, edit(client, image=png(Image.new("1", (3000, 3000)))), "image_too_large")
    refused(400, edit(client, image=png(Image.new("1", (20_000, 20_000)))), "image_too_large")
    refused(400, edit(client, image=b"/etc/passwd"), "invalid_image")
    refused(400, edit(client, files=[("image", ("b.png", png(picture()), "image/png"))]))
    refused(
        400,
        edit(client, files=[("mask", ("m.png", png(Image.fromarray(mask((16, 16)))), "image/png"))]),
        "invalid_mask",
    )
    refused(400, edit(client, **{f"field{i}": "x" for i in range(40)}), "invalid_form")
    refused(413, edit(client, image=bytes(300_000)), "request_too_large")
    refused(415, client.post(EDITS, json={"prompt": "x"}))
    refused(
        400, client.post(EDITS, content=b"--x\r\ngarbage", headers={"content-type": "multipart/form-data; boundary=x"})
    )
    refused(400, client.post(EDITS, content=b"", headers={"content-type": "multipart/form-data"}))
    answer = client.post("/v1/images/generations", json={"prompt": "a car"})
    refused(400, answer)
    assert answer.json()["error"]["param"] == "model"
    refused(405, client.get(EDITS))
    refused(404, client.get("/v1/else"))
    refused(400, edit(client, prompt="car " * 500))
    assert client.get("/healthz").status_code == 200 and pictures(edit(client))


def test_requests_of_one_shape_go_together_and_keep_their_own(server, client, pipe):
    server.engine.batches.clear()
    found, seeds = {}, (1, 2, 3)

    def ask(seed):
        found[seed] = pictures(edit(client, image=png(picture(seed)), seed=str(seed), guidance_scale=str(1 + seed)))[0]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(server.engine.batches) > 1
    for seed in seeds:
        alone = pipe(picture(seed), INSTRUCTION, seed=seed, guidance_scale=1.0 + seed, steps=4)
        np.testing.assert_array_equal(found[seed], np.asarray(alone.images[0]))


def test_pictures_from_text(tiny_model, tmp_path):
    for part in tiny_model.iterdir():
        (tmp_path / ("transformer" if part.name == "editmgt" else part.name)).symlink_to(part)
    pipe = EditPipeline.from_pretrained(tmp_path)
    with TestClient(make_app(Server(Engine(pipe, LIMITS), "tiny"))) as client:

        def generate(**fields):
            return client.post("/v1/images/generations", json={"prompt": INSTRUCTION} | fields)

        compile_for(pipe, (64, 32))
        before = dict(traces)
        assert len(pictures(generate(n=2, size="64x32"))) == 2 and dict(traces) == before
        answer = generate(n=2, seed=4, size="64x32", num_inference_steps=3, guidance_scale=3)
        expected = pipe.generate(INSTRUCTION, (64, 32), num_images=2, seed=4, steps=3, guidance_scale=3.0)
        for found, image in zip(pictures(answer), expected.images, strict=True):
            np.testing.assert_array_equal(found, np.asarray(image))
        assert answer.json()["size"] == "64x32"
        bad = [{"prompt": ""}, {"n": 99}, {"size": "7x7"}, {"stream": True}, {"hold_threshold": 0.5}, {"image": "x"}]
        for fields in bad:
            assert generate(**fields).status_code == 400, fields
        error = client.post("/v1/images/generations", content=b"{").json()["error"]
        assert error["code"] == "invalid_json"


def test_keys(pipe):
    with TestClient(make_app(Server(Engine(pipe, LIMITS), "tiny", ["secret"]))) as client:
        assert client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_kept_files_are_bounded():
    kept = answers.Kept(Limits(kept_bytes=10))
    names = [kept.add(bytes(4), "png") for _ in range(3)]
    assert [kept.get(name) is None for name in names] == [True, False, False]
    assert answers.Kept(Limits(kept_seconds=-1)).add(b"x", "png") and len(set(names)) == 3


def test_openais_client_and_an_orderly_end(tiny_model):
    command = [
        sys.executable,
        "-m",
        "editmgt_jax.cli",
        "serve",
        "--model",
        str(tiny_model),
        "--name",
        "tiny",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line.split()[-1] for line in process.stderr if line.startswith("listening on"))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        asked = {"image": ("a.png", png(picture())), "prompt": INSTRUCTION, "extra_body": {"num_inference_steps": 3}}
        answer = client.images.edit(n=2, **asked)
        assert len(answer.data) == 2 and answer.size == "32x32"
        kinds = [event.type for event in client.images.edit(stream=True, partial_images=3, **asked)]
        assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
        with pytest.raises(openai.BadRequestError, match="n must be an integer from 1 to 10"):
            client.images.edit(n=11, **asked)
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 0 and INSTRUCTION not in rest and "Traceback" not in rest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "needs --api-key-file"),
        (["--warm", "wide"], "--warm must be sizes"),
        (["--warm", "999999x999999"], "an image may have at most 178956970 pixels; --warm is"),
        (["--api-key-file", sys.executable], "a file of keys has one a line"),
        (["--port", "70000"], "--port must be from 0 to 65535; got 70000"),
        (["--api-key-file", "absent.txt"], "absent.txt"),
        (["--model", "/absent/model"], "/absent/model"),
    ],
)
def test_the_command_checks_before_it_serves(words, message, capsys):
    assert cli.main(["serve", *words]) == 2
    assert message in capsys.readouterr().err
