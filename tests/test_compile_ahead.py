"""Programs compiled ahead: what is read off a program's text, estimates, advice, and the command where libtpu is installed."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from editmgt_jax import cli
from editmgt_jax.errors import UserError
from editmgt_jax.training import compile_job, compile_table, compiler, hlo_cost, kernel_cost
from editmgt_jax.training.compile_ahead import FROZEN
from editmgt_jax.training.compile_report import GIB, add_estimate, advice, describe, markdown, out_of_memory
from editmgt_jax.training.config_files import load_config
from editmgt_jax.training.topologies import CHIPS, Chip, device_count

# Cycles: 100 once, 7 in each of 3 turns, 40 or 900 in the branches; a kernel in each turn; 3 gathers and one reduction.
TEXT = """HloModule jit_step

%turn (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %scaled.1 = bf16[4,8]{1,0} add(%a, %b), metadata={op_name="jit(step)/while/add" source_file="/x/blocks.py" source_line=7}, backend_config={"estimated_cycles":"7"}
  %fused_attention.3 = bf16[4,8]{1,0} custom-call(%scaled.1), custom_call_target="tpu_custom_call", metadata={op_name="attend
}"}
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%w), dimensions={0}
}

%more (p: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%seldom (p: f32[2]) -> f32[2] {
  ROOT %x = f32[2]{0} negate(%p), backend_config={"estimated_cycles":"900"}
}

%often (p: f32[2]) -> f32[2] {
  ROOT %x = f32[2]{0} copy(%p), backend_config={"estimated_cycles":"40"}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %first = f32[2]{0} fusion(%p), kind=kLoop, calls=%often, backend_config={"estimated_cycles":"100"}
  %loop = (s32[], bf16[4,8]) while(%t), condition=%more, body=%turn
  %all-reduce-start.1 = (f32[10]{0}, f32[10]{0}) all-reduce-start(%a, %b), to_apply=%sum
  ROOT %chosen = f32[2]{0} conditional(%c, %p, %p), true_computation=%seldom, false_computation=%often
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    cost = hlo_cost.read(TEXT)
    assert cost.cycles == 100 + 3 * 7 + 900
    assert cost.kernels == {"fused_attention": 3} and cost.kernel_bytes == {"fused_attention": 3 * (64 + 64)}
    assert cost.collectives == {"all-gather": 3, "all-reduce": 1}
    assert cost.collective_bytes == {"all-gather": 3 * 8 * 8 * 2, "all-reduce": 2 * 10 * 4}
    assert ("add", "while/add", "bf16[4,8]", "blocks.py:7") in cost.by_operation and not cost.unknown
    assert cost.of("add$") == 3 * 7 and cost.of("nothing") == 0


def test_what_the_compiler_adds_to_a_loop_goes_by_the_loop():
    named = TEXT.replace("body=%turn", 'body=%turn, metadata={op_name="jit(step)/Gemma2/while"}')
    cost = hlo_cost.read(
        named.replace(', metadata={op_name="jit(step)/while/add" ', ', metadata={op_name="convert.13" ')
    )
    assert cost.of(FROZEN) == 3 * 7
    assert hlo_cost.read(TEXT.replace("jit(step)/while/add", r"frozen[\\'text\\'][\\'params\\']")).of(FROZEN) == 3 * 7
    assert hlo_cost.read(TEXT.replace("jit(step)/while/add", r"frozen[\\'mgt\\']")).of(FROZEN) == 0


def test_a_kernel_that_reads_a_stack_counts_with_what_it_reads_of_it():
    slicing = """%slicing (p: bf16[9,4,8], i: s32[]) -> bf16[4,8] {
  %slice.2 = bf16[4,8]{1,0} fusion(%p, %i), kind=kLoop, calls=%often
  ROOT %fused_attention.4 = bf16[4,8]{1,0} custom-call(%slice.2), custom_call_target="tpu_custom_call"
}

ENTRY"""
    one = '  %first = f32[2]{0} fusion(%p), kind=kLoop, calls=%often, backend_config={"estimated_cycles":"100"}'
    read = "  %first = bf16[4,8]{1,0} fusion(%stack, %i), kind=kCustom, calls=%slicing"
    cost = hlo_cost.read(TEXT.replace("ENTRY", slicing).replace(one, read))
    assert cost.kernels == {"fused_attention": 4} and cost.kernel_bytes == {"fused_attention": 4 * (64 + 64)}


def test_a_kernel_that_writes_into_a_stack_counts_with_the_bytes_that_it_declares():
    end = 'custom_call_target="tpu_custom_call"'
    assert TEXT.count(end) == 1
    declared = end + ', backend_config={"cost_estimate":{"flops":"9","bytes_accessed":"100"}}'
    assert hlo_cost.read(TEXT.replace(end, declared)).kernel_bytes == {"fused_attention": 3 * 100}


def test_a_branch_counts_by_its_share():
    assert hlo_cost.read(TEXT, branch_share=0.25).cycles == 100 + 3 * 7 + 225


def test_a_loop_of_unknown_length_is_named():
    text = TEXT.replace("constant(3)", "parameter(0)")
    assert hlo_cost.read(text).unknown == ["more"] and hlo_cost.read(text).cycles == 100 + 7 + 900


def test_what_a_kernel_does_once_a_head_counts_so():
    """A loop of 1000 bundles whose first 200 a branch leaves out, and 60 before it."""
    lines = [f"{address:#x} : {{ nop }}" for address in range(1100)]
    lines[10] = "0xa : { %1 = sbr.rel (!%p) target = $region5 }"
    lines[70] = "0x46 : { nop } /* Start/End empty region 5 */"
    lines[80] = "0x50 : { %1 = sbr.rel (%p) target = $region9 }"
    lines[90] = "0x5a : > { %1 = sbr.rel (%p) target = $region7 }"
    lines[290] = "0x122 : > { nop } /* Start/End empty region 7 */"
    lines[1080] = "0x438 : { nop } /* Start/End empty region 9 */"
    assert kernel_cost._regions("\n".join(lines)) == (1100, 60 + 200)


def test_presets_of_compiler_options():
    assert compiler.options("default", "cpu") == {} == compiler.options("none", "tpu")
    assert "xla_jf_spmd_threshold_for_windowed_einsum_mib" in compiler.options("default", "tpu")
    assert compiler.options("default", "tpu")["xla_tpu_scoped_vmem_limit_kib"] == "32768"
    assert "windowed_einsum_mib=1000000" in compiler.describe("default", "tpu") and not compiler.describe("none", "tpu")
    with pytest.raises(UserError, match="compiler must be one of default, none; got 'fast'"):
        compiler.options("fast", "tpu")


def test_devices_and_grid_steps_are_counted():
    assert device_count("tpu7x:2x2x1") == 8 and device_count("v5e:4x4") == 16
    shape = kernel_cost.Shape(2, 8, 128, 256, 1024, 1024, False)
    steps = [shape.steps(f"fused_attention{end}") for end in ("", "_backward", "_parts", "_backward_parts")]
    assert steps == [48, 96, 144, 144]  # as docs/tpu_ladder.md counts them


def test_chips_are_named():
    assert Chip.of("v5e:4x4") is CHIPS["v5e"]
    with pytest.raises(UserError, match=r"a topology must read CHIP:SHAPE.*got 'h100:8'"):
        Chip.of("h100:8")


def _entry(**more):
    return {
        "topology": "v5e:4x4", "slices": 1, "program": "train", "devices": 16, "samples": 64,
        "seconds": {"trace": 1.0, "compile": 90.0}, "flops": 197 * 10**9, "frozen_flops": 0,
        "memory": {"arguments": GIB, "temporaries": 2 * GIB, "peak": 3 * GIB, "code": 0},
        "cycles": 1.5e6, "frozen_cycles": 0.0, "kernels": {"fused_attention": 10, "modulated_norm": 2}, "kernel_cycles": {"fused_attention": 15_000.0},
        "kernel_bytes": {"fused_attention": 10**6, "modulated_norm": 164 * 10**6},
        "collectives": {"all-gather": {"calls": 3, "bytes": GIB}}, "bound": {"all-gather": GIB}, "top": [],
        "unknown_loops": [],
    } | more  # fmt: skip


def test_estimates_add_instructions_and_kernels():
    entry = add_estimate(_entry(), CHIPS["v5e"])
    times = entry["milliseconds"]
    assert times["instructions"] == pytest.approx(1.0) and times["kernels"] == pytest.approx(0.1 + 0.2)
    assert times["ratio"] == pytest.approx(1.3) and entry["fits"]
    assert not add_estimate(_entry(memory={"arguments": 0, "peak": 17 * GIB}), CHIPS["v5e"])["fits"]
    assert "estimate 1.3 ms" in describe(entry) and "4 samples a device; fits" in describe(entry)
    assert "all-gather: 3 calls, 1.00 GiB (parameters and gradients alone: 1.00)" in describe(entry)
    header, _, line = markdown([entry]).splitlines()
    assert header.count("|") == line.count("|") and "| 1.30 |" in line


def test_frozen_encoders_are_apart():
    entry = add_estimate(_entry(frozen_cycles=0.3e6, frozen_flops=197 * 10**8), CHIPS["v5e"])
    times = entry["milliseconds"]
    assert (times["total"], times["frozen"], times["ratio"]) == pytest.approx((1.3, 0.2, 1.1))
    line = "frozen encoders apart: 0.2 of the estimate, ideal 0.1 ms"
    assert f"ideal 1.0 ms, ratio 1.10; {line}" in describe(entry)


def test_what_does_not_fit_gets_advice():
    error = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 33.40G of 15.75G hbm. Exceeded hbm capacity"
    )
    needed = out_of_memory(error)
    assert needed == int(33.4 * GIB) and out_of_memory("INTERNAL: something else") is None
    chip = CHIPS["v5e"]
    assert advice(needed, GIB, chip, 64, 16, "products", 16) == [
        "keep less for the backward pass: model.remat='full'", "batch_size=16, 1 a device",
        "or accumulate=3, with the batch as it is",
    ]  # fmt: skip
    assert "mesh.context" in advice(needed, GIB, chip, 16, 16, "full", 16)[0]
    assert "mesh.fsdp, now 1" in advice(needed, 20 * GIB, chip, 64, 16, "full", 1)[0]
    entry = {"topology": "v5e:4x4", "slices": 2, "program": "train", "error": "does not fit", "advice": ["less"]}
    assert describe(entry) == "v5e:4x4 x 2, train: does not fit\n  advice: less"
    assert "| v5e:4x4 x 2 | train | does not fit |" in markdown([entry])


def test_programs_are_named(capsys):
    assert cli.main(["compile-check", "--config", "stage2_finetune", "--programs", "serve"]) != 0
    assert "programs are train, evaluate, tokenize, decode; got serve" in capsys.readouterr().err


def test_a_compiler_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(compile_job, "COMMAND", ["false"])
    assert "ended with code 1" in compile_job.check("stage2_finetune", [], "v5e:4x4")["error"]


@pytest.fixture
def three_rows(monkeypatch):
    """A table of three rows, and compilers of which the second dies; [(topology, overrides) of each that ran]"""
    rows = compile_table.rows()[:3]
    monkeypatch.setattr(compile_table, "rows", lambda: rows)
    ran = []

    def check(config, overrides, topology, slices, program, states):
        ran.append((topology, overrides))
        if len(ran) == 2:
            return {
                "topology": topology,
                "slices": slices,
                "program": program,
                "error": "the compiler ended with code -6",
            }
        return add_estimate(_entry(topology=topology, slices=slices, program=program), Chip.of(topology))

    monkeypatch.setattr(compile_table, "check", check)
    return ran


def test_the_table_is_filled_row_by_row(three_rows, tmp_path, capsys):
    command = ["compile-check", "--all", "--rows", str(tmp_path / "rows"), "--markdown", str(tmp_path / "page.md")]
    assert cli.main(command) == 0
    first, _, third = (row.name for row in compile_table.rows())
    assert sorted(path.stem for path in (tmp_path / "rows").iterdir()) == sorted([first, third])
    assert "the compiler ended with code -6" in capsys.readouterr().out
    page = (tmp_path / "page.md").read_text()
    assert page.endswith("Rows that are not compiled yet: 1.\n") and "### `stage2_finetune`, decode" in page
    assert cli.main(command) == 0 and len(three_rows) == 4 and three_rows[1] == three_rows[3]
    assert (tmp_path / "page.md").read_text().endswith("All rows are there.\n")
    assert cli.main(["compile-check", "--all", "--config", "stage2_finetune"]) != 0
    assert cli.main(["compile-check"]) != 0


def test_rows_are_distinct_and_their_configs_are_read():
    rows = compile_table.rows()
    assert len({row.name for row in rows}) == len(rows) and {row.slices for row in rows} == {1, 2, 4}
    for row in rows:
        config = load_config(row.config, [f"--config.{one}" for one in row.overrides])
        assert config.batch_size % config.mesh.fsdp == 0
        Chip.of(row.topology)


def test_the_page_shows_the_rows_that_are_there():
    docs = Path(__file__).parents[1] / "docs"
    assert (docs / "tpu.md").read_text().endswith(compile_table.tables(docs / "tpu_rows"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (pip install 'jax[tpu]')")
def test_a_small_run_compiles_for_tpus(tmp_path):
    """Two blocks of the full-size width on 256 px."""
    small = [f"--config.{one}" for one in (
        "model.mgt.num_layers=1", "model.mgt.num_single_layers=1", "data.size=256", "batch_size=16",
    )]  # fmt: skip
    report, table = tmp_path / "report.json", tmp_path / "table.md"
    more = ["--states", "--json", str(report), "--markdown", str(table)]
    assert cli.main(["compile-check", "--config", "stage2_finetune", *more, *small]) == 0
    (entry,) = json.loads(report.read_text())
    assert entry["fits"] and entry["milliseconds"]["ratio"] > 1 and "| v5e:4x4 | train | 1 |" in table.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent died")
def test_a_compilation_ends_with_the_process_that_asked_for_it(tmp_path):
    child = (
        "import os, pathlib, sys, time\nfrom editmgt_jax.training import compile_job\n"
        f"compile_job.main = lambda _: pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(os.getpid())) + time.sleep(60)\n"
        "compile_job.run(sys.argv[1])\n"
    )
    parent = (
        "import sys\nfrom editmgt_jax.training import compile_job\n"
        f"compile_job.COMMAND = [sys.executable, '-c', {child!r}]\ncompile_job.compiled({{}})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    started = tmp_path / "child"
    while not (started.exists() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    status = Path(f"/proc/{started.read_text()}/stat")
    end = time.monotonic() + 30
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)
