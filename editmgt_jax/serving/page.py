"""The page of `editmgt serve`: a gradio interface on the server's own engine and rules.

An edit goes through `requests.read_edit`, as one of the API does. The browser asks nothing of any other server.
"""

import asyncio
import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import gradio as gr
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from editmgt_jax.declarations import MAX_SEED, MAX_THRESHOLD
from editmgt_jax.errors import EditMGTError, one_line
from editmgt_jax.serving.app import Server
from editmgt_jax.serving.controls import OWN, Controls
from editmgt_jax.serving.engine import Work
from editmgt_jax.serving.errors import ApiError, bad
from editmgt_jax.serving.requests import check_header, read_edit
from editmgt_jax.serving.session import HELD, Edited, Session, brushed, region

EXAMPLES = (
    ("chick.png", "make the chick pink"),
    ("pizza.png", "remove the pizza"),
    ("flamingo.png", "paint the flamingo cyan"),
)
PICTURES = Path(__file__).parents[1] / "assets" / "examples"
BRUSH = ("#e11d48", 0.6)  # colour and opacity
HELD_COLOUR = "#0ea5e9"
IDLE = 3600  # seconds after which a session that nobody uses is forgotten
SHOW_RESULT = "() => document.getElementById('results').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
GALLERY = {"fit_columns": False, "height": "auto", "allow_preview": False, "interactive": False, "buttons": []}
# gradio nests the button that closes a message in another that folds it, which screen readers cannot tell apart.
HEAD = """<script>
new MutationObserver(() => document.querySelectorAll(".toast-header[role=button]").forEach((header) => {
  header.removeAttribute("role");
  header.removeAttribute("tabindex");
})).observe(document, {childList: true, subtree: true});
</script>"""
ASIDE = {"api_visibility": "private", "show_progress": "hidden"}  # of events that take no time


class Page:
    """The interface of a server.

    Args:
      folder: for pictures of sessions while the server runs.
    """

    def __init__(self, server: Server, folder: str | Path):
        self._server = server
        self._weights = server.engine.pipe.model.fingerprint()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # gradio reads it for each of the components
        with gr.Blocks(title="editmgt", analytics_enabled=False, delete_cache=(IDLE, IDLE)) as blocks:
            view = _lay_out(server.engine.pipe.settings(), Session(folder))
            self._controls = view.controls
            self._connect(view)
        for block in blocks.blocks.values():
            block.async_move_resource_to_block_cache = functools.partial(
                _local, block.async_move_resource_to_block_cache
            )
        self.app = gr.mount_gradio_app(
            Starlette(),
            blocks,
            path="/",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            max_file_size=server.limits.body_bytes,
            theme=_theme(),
            head=HEAD,
            css=Path(__file__).with_name("page.css").read_text(),
        )

    def close(self) -> None:
        """Ends the connections that browsers keep open."""
        (mounted,) = self.app.routes
        mounted.app.stop_event.set()

    def _connect(self, view) -> None:
        """What happens when a visitor does something."""
        shown = [view.picture, view.editor, view.other, view.session]
        edit_inputs = [view.session, view.editor, *view.words, view.seed, view.keep_steps, view.threshold]
        edit_outputs = [view.session, *view.results]
        view.picture.input(self._take, [view.picture, view.session], shown, **ASIDE)
        view.other.click(_choose_another, [], shown[:3], **ASIDE)
        view.examples.select(self._example, [view.session], [*shown, view.words[0]], **ASIDE)
        view.new_seed.click(lambda: random.randrange(MAX_SEED + 1), [], view.seed, **ASIDE)
        done = gr.on(
            [view.go.click, view.words[0].submit],
            self._edit,
            [*edit_inputs, *view.controls.components],
            edit_outputs,
            api_visibility="private",
            concurrency_limit=None,
            show_progress_on=[view.hint, view.slider],
        )
        done.success(None, js=SHOW_RESULT, **ASIDE)
        view.threshold.change(
            _region_of, [view.session, view.threshold], view.where, trigger_mode="always_last", **ASIDE
        )
        view.step.change(_step_of, [view.session, view.step], view.step_picture, trigger_mode="always_last", **ASIDE)
        view.history.select(
            self._again, [view.session], [*edit_outputs, *edit_inputs[2:], *view.controls.components], **ASIDE
        )

    # ---- events

    def _take(self, path, session) -> list:
        """A picture that a visitor brings: it is shown under a brush."""
        if path is None:
            return [gr.skip()] * 4
        with _Said():
            check_header(Path(path).read_bytes(), "the picture", self._server.limits)
            image = session.take(path)
        editor = {"background": image, "layers": [], "composite": None}
        return [
            gr.Image(value=None, visible=False),
            gr.ImageEditor(value=editor, visible=True),
            gr.Button(visible=True),
            session,
        ]

    def _example(self, session, chosen: gr.SelectData) -> list:
        name, instruction = EXAMPLES[chosen.index]
        return [*self._take(PICTURES / name, session), instruction]

    async def _edit(
        self, session, editor, instruction, negative, query, seed, keep_steps, threshold, *settings
    ) -> list:
        """An edit, as the API makes it."""
        values = {"negative_prompt": negative, "query": query, OWN: threshold, "seed": int(seed or 0)}
        fields = values | self._controls.fields(settings)
        with _Said():
            if session.source is None:
                raise bad("there is no picture: drop one, or take an example")
            form = {name: [str(value)] for name, value in fields.items() if value not in (None, "")}
            form |= {"prompt": [instruction or ""], "image": [session.source.read_bytes()]}
            asked = await run_in_threadpool(read_edit, form, self._server.name, self._server.limits)
            call = asked.call | {"mask": brushed(editor["layers"], asked.call["image"].size)}
            self._server.metrics.asked("edit", asked)
            result, frames = await self._result(call, keep_steps)
            restored = [instruction, negative, query, seed, keep_steps, threshold, *settings]
            edited = await run_in_threadpool(session.add, call, result, frames, self._weights, restored)
        return [session, *_results(session, edited, threshold)]

    async def _result(self, call, keep_steps):
        """-> (result, pictures of its steps where there are several)"""
        engine = self._server.engine
        call = engine.recorded(call) if keep_steps else call

        def finish(result):
            return result, engine.pipe.paint_steps(result) if "record" in call else []

        future = engine.submit(Work(call, finish))
        seconds = self._server.limits.request_seconds
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            raise ApiError(504, f"the edit took longer than {seconds:g} s") from None

    def _again(self, session, chosen: gr.SelectData) -> list:
        """An edit of the history, with the values that the controls had."""
        edited = session.edits[-1 - chosen.index]
        threshold = edited.fields[5]
        return [session, *_results(session, edited, threshold), *edited.fields]


def _results(session, edited: Edited, threshold) -> list:
    """What is shown of an edit."""
    session.shown = edited
    last = len(edited.steps)
    return [
        gr.Markdown(visible=False),
        gr.Column(visible=True),
        (str(edited.before), str(edited.result)),
        region(edited, threshold),
        gr.Tab(visible=last > 1),
        gr.Slider(1, max(last, 2), value=max(last, 1)),
        (str(edited.steps[-1]), []) if edited.steps else None,
        gr.DownloadButton(value=str(edited.result)),
        [str(one.result) for one in reversed(session.edits)],
    ]


def _choose_another() -> list:
    return [gr.Image(value=None, visible=True), gr.ImageEditor(value=None, visible=False), gr.Button(visible=False)]


def _region_of(session, threshold):
    return gr.skip() if session.shown is None else region(session.shown, threshold)


def _step_of(session, step):
    steps = [] if session.shown is None else session.shown.steps
    return (str(steps[step - 1]), []) if step <= len(steps) else gr.skip()


class _Said:
    """Errors meant for visitors are shown to them."""

    def __enter__(self):
        return self

    def __exit__(self, _kind, error, _trace):
        if isinstance(error, ApiError | EditMGTError | OSError):
            raise gr.Error(one_line(str(error)), print_exception=False) from None


async def _local(move: Callable, path: Any) -> Any:
    """The file of a value, if it lies here: nothing is fetched for a visitor."""
    if "://" in str(path):
        raise gr.Error("addresses are not opened", print_exception=False)
    return await move(path)


# ---- layout


def _lay_out(defaults, session) -> SimpleNamespace:
    """The components, by name."""
    view = SimpleNamespace()
    view.session = gr.State(session, time_to_live=IDLE, delete_callback=Session.close)
    gr.Markdown(
        "# Edit a picture\nChoose a picture and say what to change. Brush over the part that may change, if you like."
    )
    with gr.Row():
        with gr.Column(min_width=320):
            _lay_out_inputs(view, defaults)
        with gr.Column(min_width=320):
            _lay_out_results(view, defaults)
    return view


def _lay_out_inputs(view, defaults) -> None:
    view.picture = gr.Image(
        label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=360, buttons=[]
    )
    view.editor = gr.ImageEditor(
        label="Picture",
        type="pil",
        format="png",
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
        buttons=[],
        visible=False,
    )
    view.other = gr.Button("Another picture", size="sm", visible=False)
    instruction = gr.Textbox(label="Instruction", placeholder="make the chick pink", max_lines=3)
    view.go = gr.Button("Edit", variant="primary")
    with gr.Accordion("Settings", open=False):
        view.seed = gr.Number(0, label="Seed", info="the same seed gives the same picture", precision=0, minimum=0)
        view.new_seed = gr.Button("New seed", size="sm")
        negative = gr.Textbox(label="Negative prompt", info="what guidance leads away from", max_lines=2)
        query = gr.Textbox(label="Query", info="words of the instruction that say where; all by default", max_lines=1)
        view.keep_steps = gr.Checkbox(True, label="Show the decoding steps")
        view.controls = Controls(defaults)
    view.words = [instruction, negative, query]
    view.examples = gr.Gallery(
        [(PICTURES / name, text) for name, text in EXAMPLES], label="Examples", columns=3, elem_id="examples", **GALLERY
    )


def _lay_out_results(view, defaults) -> None:
    view.hint = gr.Markdown("The result appears here.")
    with gr.Column(visible=False, elem_id="results") as view.shown:
        with gr.Tabs():
            with gr.Tab("Before and after"):
                view.slider = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, buttons=["fullscreen"]
                )
            with gr.Tab("Where"):
                view.where = gr.AnnotatedImage(
                    label="Relevance to the instruction", color_map={HELD: HELD_COLOUR}, format="png", buttons=[]
                )
                view.threshold = gr.Slider(
                    0,
                    MAX_THRESHOLD,
                    value=defaults.hold_threshold,
                    step=0.01,
                    label="Hold threshold",
                    info="the next edit keeps what is less relevant; 0 keeps nothing",
                )
            with gr.Tab("Steps", visible=False) as view.step_tab:
                view.step_picture = gr.AnnotatedImage(
                    label="Picture after a step", show_legend=False, format="png", buttons=[]
                )
                view.step = gr.Slider(1, 2, value=1, step=1, label="Step")
        view.download = gr.DownloadButton("Download")
        gr.Markdown("The file has the settings: `editmgt edit --from FILE` repeats the edit.")
        view.history = gr.Gallery(label="History of this session", columns=4, elem_id="history", **GALLERY)
    view.results = [
        *(view.hint, view.shown, view.slider, view.where),
        *(view.step_tab, view.step, view.step_picture, view.download, view.history),
    ]


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's system, and colours that are told apart."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        color_accent="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        block_info_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued_dark="*neutral_300",
    )
