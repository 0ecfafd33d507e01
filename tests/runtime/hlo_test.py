"""Costs read from compiled programs: loops multiplied, equal to unrolled code and arithmetic."""

import functools
import re

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from rim_jax.config import MeshConfig
from rim_jax.model import sharding
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import typical as typical_lib
from rim_jax.planning import compile as compile_lib
from rim_jax.runtime import hlo
from rim_jax.training import step as step_lib
from tests import support

LAYERS, ROWS, WIDTH = 5, 16, 32


def compile_text(fn, *args):
  return jax.jit(fn).lower(*args).compile().as_text()


def multiply_all(w, x, unroll):
  return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0]


def make_args():
  return jnp.ones((LAYERS, WIDTH, WIDTH)), jnp.ones((ROWS, WIDTH))


def test_a_scan_counts_as_often_as_it_runs():
  scanned, unrolled = (hlo.compute_costs(compile_text(
      functools.partial(multiply_all, unroll=unroll), *make_args())) for unroll in (1, True))
  assert scanned.flops == unrolled.flops == LAYERS * 2 * ROWS * WIDTH**2
  assert scanned.unknown_loops == 0


def test_a_slice_moves_its_own_bytes_and_not_those_of_what_it_is_cut_from():
  """Twice as many layers: twice the bytes, though every layer's weights are cut from all."""
  few, many = (hlo.compute_costs(compile_text(
      functools.partial(multiply_all, unroll=1), jnp.ones((layers, WIDTH, WIDTH)),
      jnp.ones((ROWS, WIDTH)))).hbm_bytes for layers in (10, 20))
  assert 4 * 10 * WIDTH**2 < few and 1.8 < many / few < 2.2


def test_loops_in_loops_multiply():
  def fn(w, x):
    return lax.fori_loop(0, 3, lambda _, x: multiply_all(w, x, 1), x)
  assert hlo.compute_costs(compile_text(fn, *make_args())).flops == (
      3 * LAYERS * 2 * ROWS * WIDTH**2)


def test_a_trip_count_is_read_from_the_counter_where_it_is_not_stated():
  def fn(w, x):  # 4, 7, 10
    return lax.while_loop(lambda c: c[0] < 12, lambda c: (c[0] + 3, c[1] @ w[0]), (4, x))[1]
  text = compile_text(fn, *make_args())
  bare, count = re.subn(r'"known_trip_count":\{"n":"\d+"\},?', '', text)
  assert count and hlo.compute_costs(bare) == hlo.compute_costs(text)
  assert hlo.compute_costs(bare).flops == 3 * 2 * ROWS * WIDTH**2


def test_a_loop_whose_length_depends_on_data_is_told():
  def fn(n, w, x):
    return lax.fori_loop(0, n, lambda _, x: x @ w[0], x)
  costs = hlo.compute_costs(compile_text(fn, jnp.int32(3), *make_args()))
  assert costs.unknown_loops == 1 and costs.flops == 2 * ROWS * WIDTH**2
  assert hlo.compute_costs(compile_text(fn, jnp.int32(3), *make_args()), 7).unknown_turns == 7


def test_collectives_are_counted_by_kind_with_what_a_device_sends():
  """Weights split over 8 devices and gathered in every layer; a gradient is reduced."""
  mesh = Mesh(np.array(jax.devices()), ('fsdp',), axis_types=(AxisType.Auto,))
  w_at, x_at, whole = (NamedSharding(mesh, spec) for spec in (P(None, 'fsdp'), P('fsdp'), P()))

  def fn(w, x):
    def layer(x, w):
      return jnp.tanh(x @ lax.with_sharding_constraint(w, whole)), None
    return lax.with_sharding_constraint(lax.scan(layer, x, w)[0].sum(0), whole)
  w, x = make_args()
  costs = hlo.compute_costs(compile_text(fn, jax.device_put(w, w_at), jax.device_put(x, x_at)))
  gather, reduce = costs.collectives['all-gather'], costs.collectives['all-reduce']
  assert gather.runs == LAYERS
  assert gather.bytes == LAYERS * 4 * WIDTH**2 * 7 / 8
  assert (reduce.runs, reduce.bytes) == (1, 4 * WIDTH * 2 * 7 / 8)
  assert costs.flops == LAYERS * 2 * ROWS * WIDTH**2 / 8


def compile_train_step(monkeypatch, unroll, mesh_config=MeshConfig(2, 2, 2), **changes):  # noqa: B008
  """(costs of a real step on 8 devices, its model FLOPs, the config)."""
  if unroll:
    monkeypatch.setattr(jax.lax, 'scan', functools.partial(lax.scan, unroll=True))
  config = support.make_config(model__attention_tile_tokens=0, train__batch_rows=8,
                               model__num_layers=3, model__scan_layers=not unroll, **changes)
  mesh = sharding.make_mesh(mesh_config)
  rows = typical_lib.Rows(8, 48, ())
  program = step_lib.make_program(config, 16, 10, mesh)
  step = step_lib.make_train_step(program, config, 10, 4, mesh)
  at = sharding.get_batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                       batch_lib.make_empty_rows(8, config.layout.row_tokens, 48))
  with jax.set_mesh(mesh):
    text = step.lower(*program.abstract, batch).compile().as_text()
  monkeypatch.undo()
  return hlo.compute_costs(text), compile_lib.compute_model_flops(config, program, rows), config


def count_attention(config):
  """Forward two products of [t, k] and [k, t] a head, backward four."""
  model = config.model
  return 6 * 2.0 * 8 * model.num_layers * config.layout.row_tokens**2 * model.embed_dim


@pytest.mark.parametrize('mesh, changes', [
    pytest.param(MeshConfig(2, 2, 2), {}, marks=pytest.mark.slow),
    pytest.param(MeshConfig(2, 2, 2), {'train__num_micro_batches': 2}, marks=pytest.mark.slow),
    # Over `tensor`, what adapters take in is multiplied by each device anew.
    (MeshConfig(2, 4, 1), {'optim__trainable': 'lora', 'model__lora__rank': 4})])
def test_the_train_step_scanned_equals_unrolled_and_arithmetic(monkeypatch, mesh, changes):
  (scanned, needed, config), (unrolled, *_) = (
      compile_train_step(monkeypatch, unroll, mesh, **changes) for unroll in (False, True))
  assert scanned.flops == unrolled.flops
  assert 8 * scanned.flops == needed + count_attention(config)
  for kind in ('all-gather', 'all-reduce'):
    assert scanned.collectives[kind].runs > 3 and scanned.collectives[kind].bytes > 0


@pytest.mark.slow
def test_remat_computes_the_layers_once_more(monkeypatch):
  plain, needed, config = compile_train_step(monkeypatch, False)
  full, *_ = compile_train_step(monkeypatch, False, model__remat='full')
  extra = 8 * (full.flops - plain.flops)
  # All products of a layer again, but the last, whose result only the next layer needs.
  assert 0.2 * needed < extra < 0.4 * (needed + count_attention(config))


# ---- What only a TPU's text has ----

# ruff: noqa: E501
PADDED = '''HloModule m

ENTRY %main (a: f32[1,7,16], b: f32[8,16,32]) -> f32[8,7,32] {
  %a = f32[1,7,16]{2,1,0} parameter(0)
  %b = f32[8,16,32]{2,1,0} parameter(1)
  ROOT %c = f32[7,8,32]{2,1,0} convolution(%a, %b), window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=0bf_0io->b0f
}
'''


def test_a_product_written_as_a_padded_convolution_counts_its_valid_positions():
  """One position of the left side meets each of the window's 8 once: 7 x 16 by 16 x (8 x 32)."""
  assert hlo.compute_costs(PADDED).flops == 2 * 7 * 16 * 8 * 32


KERNEL = '''HloModule m

ENTRY %main (q: bf16[8,4,64,16], k: bf16[8,32,16]) -> bf16[8,4,64,16] {
  %mask = s8[1,4]{1,0} constant({...})
  %q = bf16[8,4,64,16]{3,2,1,0:T(8,128)} parameter(0)
  %k = bf16[8,32,16]{2,1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = bf16[8,4,64,16]{3,2,1,0:T(8,128)S(1)} custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof": 1}}, metadata={op_name="jit(f)/NAME/pallas_call"}
}
'''


def test_what_stays_in_vector_memory_moves_no_byte():
  costs = hlo.compute_costs(KERNEL)
  # q alone comes from HBM: k and the result stay in vector memory.
  assert costs.hbm_bytes == 2 * 8 * 4 * 64 * 16 + 4


CACHED = '''HloModule m

ENTRY %main (a: f32[100], n: f32[4]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %n = f32[4]{0} parameter(1)
  %small = f32[10]{0} slice(%a), slice={[0:10]}
  %view = f32[5,2]{1,0} bitcast(%small)
  %both = (f32[10]{0}, f32[50]{0}) custom-call(%view, %n), custom_call_target="__nop"
  %part = f32[50]{0} get-tuple-element(%both), index=1
  ROOT %c = f32[100]{0} add(%part, %a)
}
'''


def test_small_results_stay_in_a_cache_where_there_is_one_and_what_is_given_does_not():
  whole = hlo.compute_costs(CACHED).hbm_bytes
  assert whole == 4 * (10 + 10 + 10 + 4 + 10 + 50 + 50 + 100 + 100)
  # Of 40 bytes at most: what the slice writes, its view, and the first result of the call.
  assert hlo.compute_costs(CACHED, cached_bytes=40).hbm_bytes == 4 * (10 + 4 + 50 + 50 + 100 + 100)
  assert hlo.compute_costs(CACHED, cached_bytes=200).hbm_bytes == 4 * (10 + 4 + 100 + 100)


def test_a_kernel_that_nobody_knows_is_named():
  found = hlo.compute_costs(KERNEL)
  assert found.unknown_kernels == ('tpu_custom_call (NAME/pallas_call)',)
  known = hlo.compute_costs(KERNEL.replace('NAME', 'splash_mqa_dq'), visible=0.5)
  assert known.unknown_kernels == ()
  assert known.flops == known.kernel_flops == 3 * 8 * 4 * 64 * 32 * 16


COLLECTIVES = '''HloModule m

%all-reduce-scatter (i: f32[8,4]) -> f32[4,4] {
  %i = f32[8,4]{1,0} parameter(0)
  %r = f32[8,4]{1,0} all-reduce(%i), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %d = f32[4,4]{1,0} dynamic-slice(%r, %z, %z), dynamic_slice_sizes={4,4}
}

%piece.1 (j: f32[8,4]) -> f32[16,4] {
  %j = f32[8,4]{1,0} parameter(0)
  ROOT %h = f32[16,4]{1,0} all-gather(%j), channel_id=4, replica_groups=[2,2]<=[4], dimensions={0}
}

%piece.2 (k: f32[8,4]) -> f32[16,4] {
  %k = f32[8,4]{1,0} parameter(0)
  ROOT %l = f32[16,4]{1,0:S(1)} all-gather(%k), channel_id=4, replica_groups=[2,2]<=[4], dimensions={0}
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %token = token[] after-all()
  %s = f32[4,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
  %send = (f32[4,4]{1,0}, u32[], token[]) send(%s, %token), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %g1 = f32[16,4]{1,0} fusion(%a), kind=kCustom, calls=%piece.1
  %g2 = f32[16,4]{1,0} fusion(%a), kind=kCustom, calls=%piece.2
  %p1 = f32[8,4]{1,0} collective-permute(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %p2 = f32[8,4]{1,0} collective-permute(%p1), channel_id=1, source_target_pairs={{0,1},{1,0}}
}
'''


def test_fused_split_and_hosted_collectives_count_once_as_what_they_are():
  assert hlo.compute_costs(COLLECTIVES).collectives == {
      'reduce-scatter': hlo.Collective(1, 128 / 2, 0),
      'all-reduce': hlo.Collective(1, 64, 64),  # to the other slice
      'all-gather': hlo.Collective(1, 128, 0),
      'collective-permute': hlo.Collective(2, 2 * 128, 0)}  # one channel, and two of them


@pytest.mark.parametrize('text, groups', [
    ('replica_groups={{0,1,4},{2,3,5}}, x', [[0, 1, 4], [2, 3, 5]]),
    ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('replica_groups=[2,4]<=[4,2]T(1,0), x', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'a','c'}", [list(range(8))]),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x",
     [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('source_target_pairs={{0,1},{1,0}}, x', [[0, 1], [1, 0]])])
def test_groups_are_read_in_every_spelling(text, groups):
  assert hlo.list_groups(text).tolist() == groups


def test_groups_in_an_unknown_spelling_are_no_silent_nothing():
  with pytest.raises(ValueError, match='unknown groups'):
    hlo.list_groups('replica_groups=somehow')


# ---- What only a GPU's text has ----

LAUNCHES = '''HloModule m

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %n = f32[8]{0} negate(%p)
  ROOT %e = f32[8]{0} exponential(%n)
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %k = f32[8]{0} custom-call(%f), custom_call_target="__gpu$xla.gpu.triton"
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %k)
}

%cond (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %s = (f32[8]{0}, f32[8]{0}) copy-start(%a)
  %d = f32[8]{0} copy-done(%s)
  %z = s32[] constant(0)
  %t = (s32[], f32[8]{0}) tuple(%z, %d)
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %g = f32[8]{0} get-tuple-element(%w), index=1
}
'''


def test_launches_are_what_stands_outside_of_fusions():
  assert hlo.compute_costs(LAUNCHES).launches == 1 + 5 * 2
  unknown = hlo.compute_costs(LAUNCHES.replace('known_trip_count', 'x'), unknown_trips=3)
  assert (unknown.launches, unknown.unknown_turns, unknown.unknown_loops) == (1 + 3 * 2, 3, 1)


@pytest.mark.parametrize('groups, across', [
    ('replica_groups=[2,4]<=[8]', 0),  # within a host each
    ('replica_groups=[1,8]<=[8]', 1 / 4),  # four rings, each through another GPU's port
    ('replica_groups=[4,2]<=[2,4]T(1,0)', 1)])  # every device with one on the other host
def test_what_goes_between_hosts_is_told_apart(groups, across):
  text = f'''HloModule m

ENTRY %main (a: f32[8,4]) -> f32[8,4] {{
  %a = f32[8,4]{{1,0}} parameter(0)
  ROOT %r = f32[8,4]{{1,0}} all-reduce(%a), {groups}, to_apply=%add
}}
'''
  found = hlo.compute_costs(text, hosts=[0] * 4 + [1] * 4).collectives['all-reduce']
  assert found.bytes > 0 and found.slice_bytes == across * found.bytes


# ---- Fusions inside of fusions ----

# One turn of a loop over layers: takes layer i of a stack, and writes layer i of another.
NESTED = '''HloModule m

%take (stack: bf16[16,8,4], at: s32[]) -> bf16[8,4] {
  %stack = bf16[16,8,4]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,8,4]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,8,4}
  ROOT %b = bf16[8,4]{1,0} bitcast(%slice)
}

%put (old: bf16[16,8,2], new: bf16[8,2], i: s32[]) -> bf16[16,8,2] {
  %old = bf16[16,8,2]{2,1,0} parameter(0)
  %new = bf16[8,2]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %none = s32[] constant(0)
  %row = bf16[1,8,2]{2,1,0} bitcast(%new)
  ROOT %u = bf16[16,8,2]{2,1,0} dynamic-update-slice(%old, %row, %i, %none, %none)
}

%fused (p: bf16[16,8,4], n: s32[], k: bf16[4,2], q: bf16[16,8,2]) -> (bf16[16,8,2], bf16[8,2]) {
  %n = s32[] parameter(1)
  %p = bf16[16,8,4]{2,1,0} parameter(0)
  %k = bf16[4,2]{1,0} parameter(2)
  %q = bf16[16,8,2]{2,1,0} parameter(3)
  %layer = bf16[8,4]{1,0} fusion(%p, %n), kind=kLoop, calls=%take
  %y = bf16[8,2]{1,0} convolution(%layer, %k), dim_labels=bf_io->bf
  %done = bf16[16,8,2]{2,1,0} fusion(%q, %y, %n), kind=kLoop, calls=%put
  ROOT %both = (bf16[16,8,2]{2,1,0}, bf16[8,2]{1,0}) tuple(%done, %y)
}

ENTRY %main (a: bf16[16,8,4], w: bf16[4,2], c: bf16[16,8,2], s: s32[]) -> bf16[8,2] {
  %a = bf16[16,8,4]{2,1,0} parameter(0)
  %w = bf16[4,2]{1,0} parameter(1)
  %c = bf16[16,8,2]{2,1,0} parameter(2)
  %s = s32[] parameter(3)
  %f = (bf16[16,8,2]{2,1,0}, bf16[8,2]{1,0}) fusion(%a, %s, %w, %c), kind=kOutput, calls=%fused
  ROOT %g = bf16[8,2]{1,0} get-tuple-element(%f), index=1
}
'''


def test_a_slice_counts_as_itself_also_in_a_fusion_of_a_fusion():
  index = 4
  layer, kernel, result = 2 * 8 * 4, 2 * 4 * 2, 2 * 8 * 2
  assert hlo.compute_costs(NESTED).hbm_bytes == index + layer + kernel + 2 * result


# ---- As a TPU's compiler writes a program before its code is generated ----

# A slice is prefetched into vector memory, and gradients are summed by another core.
EARLY = '''HloModule m

%slice_computation (given: s8[400]) -> s8[50] {
  %given = s8[400]{0} parameter(0)
  ROOT %part = s8[50]{0:S(1)} slice(%given), slice={[0:50]}
}

%sum_computation (x: f32[6], y: f32[2]) -> (f32[6], f32[2]) {
  %x = f32[6]{0} parameter(0)
  %y = f32[2]{0} parameter(1)
  ROOT %sum = (f32[6]{0}, f32[2]{0}) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (a: s8[400], g: f32[6], h: f32[2]) -> s8[50] {
  %a = s8[400]{0} parameter(0)
  %g = f32[6]{0} parameter(1)
  %h = f32[2]{0} parameter(2)
  %slice-start = ((s8[400]{0}), s8[50]{0:S(1)}, s32[]{:S(2)}) async-start(%a), calls=%slice_computation
  %sum-start = ((f32[6]{0}, f32[2]{0}), (f32[6]{0}, f32[2]{0}), s32[]{:S(2)}) async-start(%g, %h), calls=%sum_computation
  %sum-done = (f32[6]{0}, f32[2]{0}) async-done(%sum-start), calls=%sum_computation
  ROOT %slice-done = s8[50]{0:S(1)} async-done(%slice-start), calls=%slice_computation
}
'''


def test_a_slice_that_is_called_moves_its_own_bytes_as_one_that_is_named():
  short = EARLY.replace('async-start(%a), calls=%slice_computation', 'slice-start(%a), slice={}')
  sums = 2 * 4 * (6 + 2)  # read and written
  assert hlo.compute_costs(EARLY).hbm_bytes == hlo.compute_costs(short).hbm_bytes == 50 + sums


def test_a_collective_that_another_core_runs_is_counted():
  found = hlo.compute_costs(EARLY).collectives
  assert set(found) == {'all-reduce'}
  assert (found['all-reduce'].runs, found['all-reduce'].bytes) == (1, 4 * (6 + 2))


def test_what_a_fusion_reads_in_another_tiling_is_read_once():
  """As tpu7x writes it: before a slice is taken or written, the stack is tiled anew, in place."""
  view = ('%tile (x: bf16[16,8,SIZE]) -> bf16[16,8,SIZE] {\n'
          '  %x = bf16[16,8,SIZE]{2,1,0:T(16,128)} parameter(0)\n'
          '  ROOT %copy = bf16[16,8,SIZE]{2,1,0:T(8,128)} copy(%x)\n}\n\n')
  tiled = NESTED
  for number, (name, user) in enumerate((('stack', 'dynamic-slice'),
                                         ('old', 'dynamic-update-slice'))):
    size = (4, 2)[number]
    tiled = tiled.replace('%take (', view.replace('SIZE', str(size)).replace(
        '%tile', f'%tile{number}') + '%take (', 1)
    given = next(line for line in tiled.splitlines() if line.startswith(f'  %{name} = '))
    tiled = tiled.replace(given, given + (
        f'\n  %{name}_tiled = bf16[16,8,{size}]{{2,1,0}} fusion(%{name}), kind=kLoop, '
        f'output_to_operand_aliasing={{{{}}: (0, {{}})}}, calls=%tile{number}'))
    tiled = tiled.replace(f'{user}(%{name}', f'{user}(%{name}_tiled')
  assert 'dynamic-slice(%stack_tiled' in tiled and 'slice(%old_tiled' in tiled
  assert hlo.compute_costs(tiled).hbm_bytes == hlo.compute_costs(NESTED).hbm_bytes
