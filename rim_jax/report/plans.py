"""Plans as tables on the terminal; what is an estimate says so."""

from collections.abc import Iterator

from rim_jax.report import page, tables


def show(console, plan) -> None:
  title = f"{plan['method']} on {plan['chips']} chips, {plan['topology']}" + (
      f" x {plan['num_slices']} slices" if plan['num_slices'] > 1 else '')
  page.show(console, [tables.table((), list_rows(plan), title)])


def list_rows(plan) -> Iterator[tuple[str, str]]:
  """What a plan says: (label, what it says) of each row."""
  yield 'mesh', ' x '.join(f'{axis}={size}' for axis, size in plan['mesh'].items()) + (
      f" ({plan['devices']} devices)" if plan['devices'] != plan['chips'] else '')
  yield 'settings', ', '.join(f'{k}={v}' for k, v in plan['settings'].items())
  if plan['assumed']:
    yield 'assumed', ', '.join(plan['assumed'])
  yield 'parameters', '{trainable:,} trainable, {frozen:,} frozen'.format(**plan['params'])
  yield '  per device', '{trainable:,} trainable, {frozen:,} frozen'.format(
      **plan['params_per_device'])
  hbm = plan['hbm_gib']
  has = f"the chip has {hbm['chip']:.4g}" + (
      f", and a program has {hbm['usable']:.1f} of it" if hbm['usable'] != hbm['chip'] else '')
  if not plan['fits']:
    needed = f"{hbm['needed']:.1f}" if hbm.get('needed') else 'more'
    yield 'HBM per device', f'{needed} GiB needed, {has}; DOES NOT FIT'
    yield '', plan['reason']
  else:
    yield 'HBM per device', (
        '{arguments:.2f} arguments + {temporaries:.2f} temporaries: peak {peak:.2f} GiB, '.format(
            **hbm) + f'{has}; fits')
  if 'flops' in plan:
    yield from _list_work(plan)
  if plan['unknown_here']:
    yield 'not in it', plan['unknown_here']
  if 'flops' in plan:
    made_by, version = list(plan['versions'].items())[-1]
    yield 'compiled in', f"{plan['compile_secs']:.0f} s, by {made_by} {version}"


def _list_work(plan) -> Iterator[tuple[str, str]]:
  """What a step does, and how long it takes at least."""
  is_gpu = 'nvlink' in plan['roofline_secs']
  flops, secs, unknown = plan['flops'], plan['roofline_secs'], plan['unknown']
  yield 'FLOPs', (
      f"{flops['per_step']:.3e} a step, {flops['per_device']:.3e} a device "
      f"({flops['attention_per_device']:.1e} in attention's kernels, which visit "
      f"{plan['visible_tiles']:.0%} of the pairs)")
  yield 'HBM traffic', f"{plan['hbm_bytes_per_device'] / 1e9:,.1f} GB a step and device"
  if is_gpu:
    yield 'kernels', f"{plan['launches']:,.0f} launched a step"
  if is_gpu or unknown['loops']:
    yield 'loops of unknown length', f"{unknown['loops']}" + (
        f", {unknown['turns']:,.0f} turns in rows of typical records" + (
            '; the host waits in each' if is_gpu else '') if unknown['loops'] else '')
  for kind, c in plan['collectives'].items():
    across = f", {c['slice_bytes'] / 2**20:,.1f} of them to other {'nodes' if is_gpu else 'slices'}"
    yield kind, (f"{c['runs']:,.0f} a step, each device sends {c['bytes'] / 2**20:,.1f} MiB"
                 + (across if c['slice_bytes'] else ''))
  yield 'roofline (estimate)', ', '.join(
      f'{name} {1000 * s:.2f} ms' for name, s in secs.items() if name != 'step')
  if unknown['kernels']:
    yield 'step time, MFU', (
        f"NOT KNOWN: the FLOPs of {unknown['kernels']} kernels are not known: "
        + ', '.join(unknown['names']))
  else:
    yield 'step time at least', f"{1000 * secs['step']:.2f} ms, bound by {plan['bound']}"
    yield 'MFU at most', (
        f"{plan['mfu_ceiling']:.1%} (an upper bound: nothing else costs time, and everything "
        'overlaps)')


# ---- The fastest setting ----


def make_fastest(found) -> tables.Table:
  """Every setting that was tried, in that order; the fastest that fits is named below."""
  rows = [_list_tried(entry) for entry in found['tried']]
  best = found['best']
  note = 'nothing that fits was found; take more chips or another kind' if best is None else (
      'fastest: ' + ' '.join(f'--config.{key}={value}' for key, value in best['keys'].items())
      + ' --config.train.batch_examples=0')
  more = ''.join(f"; with {p['train.batch_rows']} rows, another recipe, MFU at most "
                 f"{p['mfu_ceiling']:.1%}" for p in found['more_rows'])
  return tables.table(['remat', 'layers', 'tile', 'data x fsdp x tensor', 'rows', 'micro', 'GiB',
                       'ms: compute / HBM / network', 'step', 'MFU', 's to compile', ''], rows,
                      notes=[note + more])


def _list_tried(entry):
  keys, secs = entry['keys'], entry.get('roofline_secs') or {}
  parts = ' / '.join(f'{1000 * s:.1f}' for name, s in secs.items() if name != 'step')
  fits = entry.get('fits')
  return [keys['model.remat'], 'in a loop' if keys['model.scan_layers'] else 'one by one',
          str(keys['model.attention_tile_tokens']),
          ' x '.join(str(keys[f'mesh.{axis}']) for axis in ('data', 'fsdp', 'tensor')),
          str(keys['train.batch_rows']), str(keys['train.num_micro_batches']),
          f"{entry['needed_gib']:.1f}" if entry.get('needed_gib') else '', parts,
          f"{1000 * secs['step']:.1f}" if fits else '',
          f"{entry['mfu_ceiling']:.0%}" if fits else '',
          f"{entry['compile_secs']:.0f}" if entry.get('compile_secs') else '', entry['why']]


# ---- An answer ----


def make_latency(entries) -> tables.Table:
  """Launches, traffic and least time of each way to answer."""
  rows = [[e['method'], str(e['batch']), f"{e['question_tokens']} in {e['trunk_tokens']}",
           *(text for part in ('prefill', 'first_token') for text in _list_part(e[part]))]
          for e in entries]
  return tables.table(
      ['method', 'batch', 'question in trunk',
       *(f'{part}: {what}' if what == 'kernels' else what for part in ('prefill', 'first token')
         for what in ('kernels', 'GB', 'ms: compute / HBM', 'x direct', 'with cache: GB',
                      'x direct'))], rows)


def _list_part(part):
  return [f"{part['launches']:,.0f}", f"{part['hbm_bytes'] / 1e9:.2f}",
          f"{1000 * part['compute_secs']:.2f} / {1000 * part['hbm_secs']:.2f}",
          f"{part['ratio']:.2f}" if part['ratio'] else
          f"unknown: {', '.join(part['unknown_kernels'])}",
          f"{part['cached_hbm_bytes'] / 1e9:.2f}",
          f"{part['cached_ratio']:.2f}" if part['cached_ratio'] else '']
