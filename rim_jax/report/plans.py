"""Plans as tables on the terminal; what is an estimate says so."""

from rim_jax.report import tables


def show(console, plan) -> None:
  title = f"{plan['method']} on {plan['chips']} chips, {plan['topology']}" + (
      f" x {plan['num_slices']} slices" if plan['num_slices'] > 1 else '')
  tables.show(console, (), list_rows(plan), title)


def list_rows(plan) -> list[list[str]]:
  """What a plan says, a row a label."""
  rows = []

  def add(label, value):
    rows.append([label, value])
  add('mesh', ' x '.join(f'{axis}={size}' for axis, size in plan['mesh'].items()) + (
      f" ({plan['devices']} devices)" if plan['devices'] != plan['chips'] else ''))
  add('settings', ', '.join(f'{k}={v}' for k, v in plan['settings'].items()))
  if plan['assumed']:
    add('assumed', ', '.join(plan['assumed']))
  add('parameters', '{trainable:,} trainable, {frozen:,} frozen'.format(**plan['params']))
  add('  per device', '{trainable:,} trainable, {frozen:,} frozen'.format(
      **plan['params_per_device']))
  hbm = plan['hbm_gib']
  has = f"the chip has {hbm['chip']:.4g}" + (
      f", and JAX takes {hbm['usable']:.1f} of it" if hbm['usable'] != hbm['chip'] else '')
  if not plan['fits']:
    needed = f"{hbm['needed']:.1f}" if hbm.get('needed') else 'more'
    add('HBM per device', f'{needed} GiB needed, {has}; DOES NOT FIT')
    add('', plan['reason'])
  else:
    add('HBM per device', '{arguments:.2f} arguments + {temporaries:.2f} temporaries + {code:.2f} '
        'code: peak {peak:.2f} GiB, '.format(**hbm) + f'{has}; fits')
  if 'flops' in plan:
    _add_work(add, plan)
  if plan['unknown_here']:
    add('not in it', plan['unknown_here'])
  if 'flops' in plan:
    made_by, version = list(plan['versions'].items())[-1]
    add('compiled in', f"{plan['compile_secs']:.0f} s, by {made_by} {version}")
  return rows


def _add_work(add, plan):
  """What a step does, and how long it takes at least."""
  is_gpu = 'nvlink' in plan['roofline_secs']
  flops, secs, unknown = plan['flops'], plan['roofline_secs'], plan['unknown']
  add('FLOPs', f"{flops['per_step']:.3e} a step, {flops['per_device']:.3e} a device "
      f"({flops['attention_per_device']:.1e} in attention's kernels, which visit "
      f"{plan['visible_tiles']:.0%} of the pairs)")
  add('HBM traffic', f"{plan['hbm_bytes_per_device'] / 1e9:,.1f} GB a step and device")
  if is_gpu:
    add('kernels', f"{plan['launches']:,.0f} launched a step")
  if is_gpu or unknown['loops']:
    add('loops of unknown length', f"{unknown['loops']}" + (
        f", {unknown['turns']:,.0f} turns in rows of typical records" + (
            '; the host waits in each' if is_gpu else '') if unknown['loops'] else ''))
  for kind, c in plan['collectives'].items():
    across = f", {c['slice_bytes'] / 2**20:,.1f} of them to other {'nodes' if is_gpu else 'slices'}"
    add(kind, f"{c['runs']:,.0f} a step, each device sends {c['bytes'] / 2**20:,.1f} MiB"
        + (across if c['slice_bytes'] else ''))
  add('roofline (estimate)', ', '.join(
      f'{name} {1000 * s:.2f} ms' for name, s in secs.items() if name != 'step'))
  if unknown['kernels']:
    add('step time, MFU', f"NOT KNOWN: the FLOPs of {unknown['kernels']} kernels are not known: "
        + ', '.join(unknown['names']))
  else:
    add('step time at least', f"{1000 * secs['step']:.2f} ms, bound by {plan['bound']}")
    add('MFU at most', f"{plan['mfu_ceiling']:.1%} (an upper bound: nothing else costs time, and "
        'everything overlaps)')
