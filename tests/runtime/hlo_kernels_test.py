"""FLOPs of kernels that a program calls by name: texts of real programs, cut to what is read."""

import pytest

from rim_jax.runtime import hlo

# ruff: noqa: E501
CALL = '''HloModule m

ENTRY %main (q: bf16[4,512,8,64], k: bf16[4,512,2,64], l: f32[4,8,512]) -> bf16[4,512,8,64] {
  %q = bf16[4,512,8,64]{3,2,1,0} parameter(0)
  %k = bf16[4,512,2,64]{3,2,1,0} parameter(1)
  %l = f32[4,8,512]{2,1,0} parameter(2)
  %n = s32[4,4,512]{2,1,0} constant({...})
  ROOT %c = CALLED
}
'''
PRODUCT = 2 * 4 * 8 * 512 * 512 * 64  # every query of every head on every key
TRITON = ('(bf16[4,512,8,64]{3,2,1,0}, f32[4,8,512]{2,1,0}) custom-call(%q, %k, %k, %n, %n), '
          'custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/NAME/pallas_call"}'
          ', backend_config={grid_x = 4 : i32, ir = "rim_attention_dq ()"}')
CUDNN = ('(bf16[4,8,512,64]{3,1,2,0}, f32[4,8,512]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), '
         'custom_call_target="__cudnn$fmhaSoftmaxKIND", backend_config={"cudnn_fmha_backend_config": '
         '{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["4", "8", "512", '
         '"512"], "layout": {"minor_to_major": ["3", "2", "1", "0"]}}}}')
CUBLAS = '''HloModule m

ENTRY %main (a: bf16[512,256], b: bf16[256,384]) -> (bf16[512,384], s8[4194304]) {
  %a = bf16[512,256]{1,0} parameter(0)
  %b = bf16[256,384]{1,0} parameter(1)
  ROOT %c = (bf16[512,384]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[]}}}
}
'''
SPLASH = '''HloModule m

ENTRY %main (q: bf16[8,4,64,16], k: bf16[8,32,16]) -> bf16[8,4,64,16] {
  %mask = s8[1,4]{1,0} constant({...})
  %q = bf16[8,4,64,16]{3,2,1,0} parameter(0)
  %k = bf16[8,32,16]{2,1,0} parameter(1)
  ROOT %c = bf16[8,4,64,16]{3,2,1,0} custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/NAME/pallas_call"}
}
'''


def compute(called, **settings):
  return hlo.compute_costs(CALL.replace('CALLED', called), **settings)


@pytest.mark.parametrize('name, products', [
    ('splash_mqa_fwd_residuals', 2), ('splash_mqa_dq', 3), ('splash_mqa_dkv', 4)])
def test_splash_counts_by_its_shapes(name, products):
  costs = hlo.compute_costs(SPLASH.replace('NAME', name))
  assert costs.flops == costs.kernel_flops == products * 2 * 8 * 4 * 64 * 32 * 16
  assert costs.unknown_kernels == ()


@pytest.mark.parametrize('name, products', [
    ('rim_attention_forward', 2), ('rim_attention_dq', 3), ('rim_attention_dkv', 4)])
def test_this_projects_kernels_count_visited_tiles(name, products):
  whole, part = (compute(TRITON.replace('NAME', name), visible=v) for v in (1.0, 0.15))
  assert whole.flops == products * PRODUCT and whole.unknown_kernels == ()
  assert part.flops == pytest.approx(0.15 * whole.flops)


def test_cudnn_counts_the_whole_score_matrix():
  forward, backward = (compute(CUDNN.replace('KIND', kind), visible=0.1)
                       for kind in ('', 'Backward'))
  assert (forward.flops, backward.flops) == (2 * PRODUCT, 5 * PRODUCT)
  assert forward.unknown_kernels == backward.unknown_kernels == ()


def test_a_product_of_cublas_counts_by_what_it_sums():
  costs = hlo.compute_costs(CUBLAS)
  assert costs.flops == 2 * 512 * 384 * 256 and costs.unknown_kernels == ()


@pytest.mark.parametrize('called, name', [
    (TRITON, '__gpu$xla.gpu.triton (NAME/pallas_call)'),  # its code names another: no matter
    ('bf16[4]{0} custom-call(%q), custom_call_target="mosaic_gpu_v2"', 'mosaic_gpu_v2'),
    ('bf16[4]{0} custom-call(%q), custom_call_target="__cublas$gemm"', '__cublas$gemm'),
    ('bf16[4]{0} custom-call(%q), custom_call_target="__cudnn$fmhaSoftmax"',
     '__cudnn$fmhaSoftmax'),
    ('bf16[4]{0} custom-call(%q), custom_call_target="__cudnn$convForward"',
     '__cudnn$convForward')])
def test_what_is_not_known_is_named(called, name):
  found = compute(called)
  assert found.unknown_kernels == (name,) and found.flops == 0


@pytest.mark.parametrize('target', [
    '__gpu$TopK', '__cub$DeviceRadixSort', 'AllocateBuffer', 'AsyncCollectiveStart', 'PrepareAsyncCallDone', 'SPMDFullToShardShape'])
def test_what_multiplies_nothing_is_known(target):
  found = compute(f'bf16[4]{{0}} custom-call(%q), custom_call_target="{target}"')
  assert found.unknown_kernels == () and found.flops == 0
