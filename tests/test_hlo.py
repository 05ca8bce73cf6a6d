"""What is read from a compiled program's text, on texts small enough to count by hand."""

import pytest

from dnrt_jax.benchmark import compile as compiled
from dnrt_jax.benchmark import hlo

TEXT = """\
HloModule jit_run, is_scheduled=true

FileNames
1 "/any/dnrt_jax/training/dispatch.py"
2 "/any/dnrt_jax/arr.py"
3 "/any/dnrt_jax/models/vit.py"

FunctionNames
1 "train_steps.<locals>.run"
2 "update"
3 "ViT.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}
3 {file_name_id=3 function_name_id=3 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}

%fused (p: f32[100], i: s32[8,1]) -> f32[8] {
  %p = f32[100]{0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  ROOT %g = f32[8]{0} gather(%p, %i), offset_dims={}, collapsed_slice_dims={0}, slice_sizes={1}
}

%inner (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %n = f32[8]{0} get-tuple-element(%q), index=1
  %m = f32[8]{0} negate(%n), metadata={op_name="jit(run)/while/body/jvp(ViT)/blocks_0/attn/neg" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %o = (s32[], f32[8]{0}) tuple(%n, /*index=1*/%m)
}

%holds (q: (s32[], f32[8])) -> pred[] {
  %q.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%body.1 (r: (s32[], f32[8], u8[50,4,4,3])) -> (s32[], f32[8], u8[50,4,4,3]) {
  %r = (s32[]{:T(128)}, f32[8]{0:T(8)S(1)}, u8[50,4,4,3]{2,1,3,0:T(8,128)(4,1)}) parameter(0)
  %x = f32[8]{0:T(8)S(1)} get-tuple-element(%r), index=1
  %d = u8[50,4,4,3]{2,1,3,0:T(8,128)(4,1)} get-tuple-element(%r), index=2
  %f = f32[8]{0:T(8)S(1)} fusion(%x, %x), kind=kLoop, calls=%fused, metadata={op_name="jit(run)/while/body/jvp()/gather" stack_frame_id=2}
  %c-start = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%f)
  %c-done = f32[8]{0} copy-done(%c-start)
  %w = (s32[], f32[8]{0}) while(%r), condition=%holds, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %s = f32[8]{0} get-tuple-element(%w), index=1
  %a = f32[8]{0} add(%s, %f), metadata={op_name="jit(run)/while/body/add" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %t = (s32[], f32[8]{0}, u8[50,4,4,3]{2,1,3,0}) tuple(%s, %a, %d)
}

ENTRY %main.2 (data: u8[50,4,4,3], start: f32[8]) -> f32[8] {
  %data = u8[50,4,4,3]{3,2,1,0} parameter(0)
  %start = f32[8]{0} parameter(1), sharding={replicated}
  %copy.1 = u8[50,4,4,3]{2,1,3,0} copy(%data), backend_config={"window_config":{"estimated_cycles":"5000"}}
  %z = (s32[], f32[8]{0}, u8[50,4,4,3]{2,1,3,0}) tuple(%start, %copy.1)
  %loop = (s32[], f32[8]{0}, u8[50,4,4,3]{2,1,3,0}) while(%z), condition=%holds, body=%body.1
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_the_largest_number_of_cycles_is_no_estimate():
    program = hlo.parse(TEXT.replace('"5000"', f'"{2**63 - 1}"'))
    (copy,) = (i for i in program.computations["main.2"] if i.opcode == "copy")
    assert copy.cycles is None
    assert compiled._without_estimate(copy) == "others"


def test_instructions_keep_their_parts(program):
    (copy,) = (i for i in program.computations["main.2"] if i.opcode == "copy")
    assert (copy.name, copy.result) == ("copy.1", "u8[50,4,4,3]{2,1,3,0}")
    assert (copy.operands, copy.cycles) == (("data",), 5000)
    while_ = program.computations["body.1"][6]
    assert (while_.opcode, while_.result) == ("while", "(s32[], f32[8]{0})")
    assert while_.called == ["holds", "inner"]
    assert program.computations["inner"][-1].operands == ("n", "m")


def test_the_step_is_the_largest_loop_of_the_entry(program):
    assert (program.entry, program.loop()) == ("main.2", "body.1")
    with pytest.raises(ValueError, match="no loop"):
        hlo.parse(TEXT.replace(" while(", " call(")).loop()


def test_a_loop_in_the_step_runs_as_often_as_is_known(program):
    runs = {i.name: times for i, times in program.running("body.1")}
    assert (runs["m"], runs["a"]) == (3, 1)
    assert "g" not in runs  # inside a fusion
    assert "g" in {i.name for i, _ in program.running("body.1", deep=True)}


def test_the_condition_of_a_loop_tells_how_often_it_runs():
    """As in a scan that the TPU's compiler has changed."""
    told = ', backend_config={"known_trip_count":{"n":"3"}}'
    condition = """\
%counts (q: (s32[], f32[8])) -> pred[] {
  %two = s32[] constant(2)
  %q.2 = (s32[], f32[8]{0}) parameter(0)
  %k = s32[] get-tuple-element(%q.2), index=0
  ROOT %less = pred[] compare(%k, %two), direction=LT
}

%body.1 ("""
    text = TEXT.replace(told, "").replace("%body.1 (", condition, 1)
    times = lambda text: {i.name: times for i, times in hlo.parse(text).running("body.1")}["m"]
    assert times(text) == 1
    text = text.replace("condition=%holds, body=%inner", "condition=%counts, body=%inner")
    assert times(text) == 2


def test_a_branch_and_a_call_run_what_they_name():
    text = """
%one (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} negate(%p)
}

%two (p: f32[2]) -> f32[2] {
  ROOT %q = f32[2]{0} call(%p), to_apply=%one
}

ENTRY %main (x: pred[]) -> f32[2] {
  ROOT %c = f32[2]{0} conditional(%x, %y, %z), branch_computations={%one, %two}
}
"""
    program = hlo.parse(text)
    assert [i.opcode for i, _ in program.running("main")] == [
        *("conditional", "negate", "call", "negate")
    ]


def test_what_is_outside_of_the_loop_is_paid_once(program):
    cycles = {i.name: i.cycles for i, _ in program.outside("body.1") if i.cycles}
    assert cycles == {"copy.1": 5000}
    step = sum(times * (i.cycles or 0) for i, times in program.running("body.1"))
    assert step == 100 + 3 * 7


def test_instructions_know_who_called_for_them(program):
    (add,) = (i for i in program.computations["body.1"] if i.opcode == "add")
    assert program.origin(add) == [
        "/any/dnrt_jax/training/dispatch.py:train_steps.<locals>.run",
        "/any/dnrt_jax/arr.py:update",
    ]
    assert compiled.part(program, add) == "loss and ARR"
    assert compiled.part(program, program.computations["inner"][2]) == "attention"
    assert compiled.part(program, program.computations["main.2"][2]) == "rest"


def test_sizes_are_in_bytes():
    assert hlo.size("f32[10,4]{1,0:T(8,128)(2,1)S(1)}") == 160
    assert hlo.size("(bf16[3], s32[], pred[7]{0}, u8[2,2])") == 6 + 4 + 7 + 4
    assert hlo.size("f8e4m3fn[8]") == 8
    assert hlo.size("(s4[6]{0}, token[])") == 3


def collectives(*lines):
    text = "\n".join(["ENTRY %main (x: f32[]) -> f32[] {", *(f"  {line}" for line in lines), "}"])
    return hlo.collectives(hlo.parse(text), "main")


def test_collectives_are_counted_by_kind_in_bytes():
    assert collectives(
        "%a = (f32[10,4]{1,0}, s32[10]{0}) all-reduce(%x, %y), replica_groups={}",
        "%c = f32[] all-reduce(%w)",
        "%d = f32[99] add(%a, %b)",
        "ROOT %b = bf16[8]{0} all-gather-start(%z), dimensions={0}",
    ) == {"all-reduce": (2, 160 + 40 + 4), "all-gather": (1, 16)}


def test_a_collective_spread_over_fusions_counts_once():
    assert collectives(
        "%a = f32[4]{0} all-gather(%x), channel_id=3, dimensions={0}",
        "%b = f32[4]{0} all-gather(%y), channel_id=3, dimensions={0}",
        "%c = f32[4]{0} all-gather(%z), channel_id=4, dimensions={0}",
    ) == {"all-gather": (2, 32)}


def test_an_asynchronous_gather_counts_its_result_alone():
    gathered = collectives("%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), channel_id=1")
    assert gathered == {"all-gather": (1, 32)}
    line = "%a = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x)"
    assert collectives(line) == {"collective-permute": (1, 8)}


def test_gathers_of_single_elements_are_scalar(program):
    assert hlo.scalar_moves(program, "body.1") == {"gather": 1}
    rows = hlo.parse(TEXT.replace("slice_sizes={1}", "slice_sizes={1,4}"))
    assert hlo.scalar_moves(rows, "body.1")["gather"] == 0
    scatter = "scatter(%p, %i, %u), update_window_dims={}, to_apply=%sum"
    text = TEXT.replace("gather(%p, %i), offset_dims={}", scatter)
    assert hlo.scalar_moves(hlo.parse(text), "body.1") == {"scatter": 1}


def test_copies_of_the_data_set_are_found(program):
    assert hlo.copies(program, "u8", 50 * 48) == 1
    assert hlo.copies(program, "u8", 50 * 48 + 1) == 0
    assert hlo.copies(hlo.parse(TEXT.replace("copy(%data)", "bitcast(%data)")), "u8", 2400) == 0


def test_kernels_and_their_bytes(program):
    kernels, moved = hlo.traffic(program, "body.1")
    # fusion, copy-start, add, and the negation in the loop three times
    assert kernels == 1 + 1 + 1 + 3
    assert moved == 3 * 32 + (2 * 32 + 4 + 32) + 3 * 32 + 3 * 2 * 32


def test_of_an_operand_that_is_only_gathered_from_what_is_read_counts():
    moved = lambda text: hlo.traffic(hlo.parse(text), "body.1")[1]
    text = TEXT.replace("fusion(%x, %x)", "fusion(%d, %x)")  # of 2400 bytes instead of 32
    assert moved(text) == moved(TEXT)
    whole = text.replace("  ROOT %g", "  %h = f32[100]{0} negate(%p)\n  ROOT %g")
    assert moved(whole) == moved(TEXT) + 2400 - 32
