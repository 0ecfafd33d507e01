"""Every recipe parses, every problem is told, and every key does something.

The last is the table `LIVE`: for each key a change, and a probe that sees it.
The probes look at what the program would do (a batch, a plan, the traced step,
what the loop asks of its parts) and compile no network.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
import types
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import presets
from rim_jax import ask, modes, reader, train
from rim_jax import config as config_lib
from rim_jax.config import Config, limits
from rim_jax.config import stages as stages_lib
from rim_jax.data import datasets, gsm8k
from rim_jax.data import tokenizer as tokenizer_lib
from rim_jax.errors import Stopped, UserError
from rim_jax.evaluation import (
  attention_weights,
  decode,
  interventions,
  latency,
  probes,
  run_scores,
  scores,
  valid_loss,
)
from rim_jax.model import network, sharding
from rim_jax.model import transformer as transformer_lib
from rim_jax.model.network import Network
from rim_jax.packing import batch as batch_lib
from rim_jax.packing import source as source_lib
from rim_jax.packing import stream
from rim_jax.pretrained import families, verification, weights
from rim_jax.results import values
from rim_jax.runtime import card as card_lib
from rim_jax.runtime import hosts, run_folder
from rim_jax.sweep import matched_runs
from rim_jax.training import checkpoint as checkpoint_lib
from rim_jax.training import recorder
from rim_jax.training import state as state_lib
from rim_jax.training import step as step_lib
from tests import support

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py')
                 if p.stem not in ('presets', 'compare'))  # that one is of many runs


def load_recipe(name):
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# ---- Recipes ----


@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize('preset', ['chain', 'chain_harder', 'gsm8k', 'gsm8k_perturbed',
                                    'prosqa_small', 'prosqa', 'smollm2', 'gpt2', 'llama3_2_1b',
                                    'llama3_2_3b'])
def test_every_recipe_is_a_config(name, preset):
  module = load_recipe(name)
  tree = module.get_config() if name == 'smoke' else module.get_config(preset)
  assert tree.is_locked  # or else a typo on the command line would pass
  config = config_lib.parse_config(tree)
  assert stages_lib.make_stages(config)
  methods = {'stage1': 'rim_stage1', 'stage2': 'rim_stage2', 'smoke': 'rim',
             **{variant: host for variant, (host, _) in presets.VARIANTS.items()}}
  assert config.method == methods.get(name, name)


@pytest.mark.parametrize('preset', ['chain', 'chain_harder', 'gsm8k', 'gsm8k_perturbed',
                                    'prosqa_small', 'prosqa_reading', 'prosqa_walk', 'prosqa'])
def test_the_recipes_of_the_stages_are_what_rim_runs(preset):
  """So that a stage can be done again alone: same config, to the last key."""
  stages = stages_lib.make_stages(config_lib.parse_config(load_recipe('rim').get_config(preset)))
  alone = [config_lib.parse_config(load_recipe(n).get_config(preset)) for n in ('stage1', 'stage2')]
  assert [stage for _, stage in stages] == alone


def test_the_recipes_of_a_preset_differ_in_the_method_only():
  """A comparison of methods is of methods: same data, model, budget, optimizer.

  A readout before the first block is a part of stage 1; room for a written chain, of cot; one block
  of as many thoughts as Coconut's, of codi and pccot; passes over blocks and what they take, of
  those that loop.
  """
  trees = [config_lib.flatten(config_lib.parse_config(load_recipe(n).get_config('chain')))
           for n in ('rim', 'direct', 'cot', 'pause', 'icot', 'coconut', 'codi', 'pccot', 'lotus',
                     'looped')]
  differ = {k for k in trees[0] if len({t[k] for t in trees}) > 1}
  assert differ <= {'method', 'eval.max_new_tokens', 'layout.depth0_readout', 'layout.num_blocks',
                    'layout.block_tokens', 'loop.num_passes', 'curriculum.reduction',
                    'lotus.num_stages', 'lotus.stage_frac'}


def test_an_unknown_preset_is_told():
  with pytest.raises(UserError, match="no preset 'gsm9k'; there are chain, chain_harder, gsm8k"):
    load_recipe('rim').get_config('gsm9k')


# ---- ConfigDict -> Config ----


def test_the_dictionary_is_locked_and_round_trips():
  tree = config_lib.make_config_dict(method='cot')
  tree.train.num_examples = 5
  with pytest.raises(AttributeError):
    tree.optim.learning_rat = 1.0
  with pytest.raises(TypeError):
    tree.seed = 'x'
  config = config_lib.parse_config(tree)
  assert (config.method, config.train.num_examples) == ('cot', 5)
  assert config_lib.parse_config(dataclasses.asdict(config)) == config
  assert config_lib.parse_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.seed = 1


def test_flatten_names_every_leaf():
  flat = config_lib.flatten(Config())
  assert flat == config_lib.flatten(dataclasses.asdict(Config()))
  assert flat['data.chain.modulus'] == 10
  assert not any(isinstance(v, dict) or dataclasses.is_dataclass(v) for v in flat.values())


def test_a_whole_number_is_good_for_a_float_and_nothing_else_is_cast():
  tree = dataclasses.asdict(dataclasses.replace(
      Config(), train=config_lib.TrainConfig(num_examples=1)))
  tree['optim']['learning_rate'] = 1
  assert type(config_lib.parse_config(tree).optim.learning_rate) is float
  for key, value in (('seed', 1.0), ('seed', True), ('seed', None), ('seed', '1')):
    with pytest.raises(UserError, match=f'{key}={value!r} should be int'):
      config_lib.parse_config({**tree, key: value})
  with pytest.raises(UserError, match='tie_embeddings=1 should be bool'):
    config_lib.parse_config({**tree, 'model': {**tree['model'], 'tie_embeddings': 1}})


def test_every_problem_is_told_at_once_and_named():
  tree = dataclasses.asdict(Config())
  tree.update(sead=1, method=3, mesh=4)
  tree['optim'].update(learning_rat=1.0, b1='x')
  with pytest.raises(UserError) as caught:
    config_lib.parse_config(tree, 'my.py')
  lines = str(caught.value).splitlines()
  assert len(lines) == 5
  assert all(line.startswith('my.py: ') for line in lines)
  for words in (["'sead'", "'seed'"], ['method=3', 'str'], ['mesh=4', 'group'],
                ["'optim.learning_rat'", "'learning_rate'"], ["optim.b1='x'", 'float']):
    assert any(all(w in line for w in words) for line in lines), words


TYPES = config_lib.list_types()
NONSENSE = {str: 'nonsense', int: -2, float: -2.0}  # refused by every limit and every choice


@pytest.mark.parametrize('key', [key for key, kind in TYPES.items() if typing.get_args(kind)])
def test_every_limit_is_checked(key):
  bad = NONSENSE[type(config_lib.flatten(Config())[key])]
  problem, = find_problems(support.make_config(), {key: bad})
  assert problem.startswith(f'{key}={bad!r} ')
  for limit in getattr(TYPES[key], '__metadata__', ())[:1]:
    assert problem.endswith(limit.words)


@pytest.mark.parametrize('key, good, bad', [
    ('model.num_layers', 1, 0), ('layout.num_blocks', 0, -1), ('optim.weight_decay', 0.0, -1e-9),
    ('optim.learning_rate', 1e-9, 0.0), ('optim.b1', 0.0, 1.0), ('mesh.data', -1, 0),
    ('checkpoint.keep_last', 2, 1), ('checkpoint.stop_frac', 1.0, 0.0), ('eval.num_blocks', -1, -2),
    ('checkpoint.stop_frac', 0.5, 1.1), ('seed', 2**32 - 1, 2**32), ('data.chain.modulus', 2, 1),
    ('data.chain.operators', '*', ''), ('data.prosqa.num_names', 17, 18),
    ('curriculum.stage1_frac', 0.5, 1.0), ('curriculum.stage1_frac', 0.1, 0.0),
    ('eval.latency_batch_sizes', '1, 8', '1,0')])
def test_a_limit_is_where_it_is_said_to_be(key, good, bad):
  for value, count in ((good, 0), (bad, 1)):
    assert len(limits.find_problems({key: TYPES[key]}, {key: value})) == count


def test_every_number_that_is_not_finite_is_a_problem():
  for key, value in config_lib.flatten(Config()).items():
    if isinstance(value, float):
      for bad in (float('nan'), float('inf'), float('-inf')):
        assert f'{key}={bad} must be a finite number' in find_problems(
            support.make_config(), {key: bad})


def find_problems(config, changes):
  for key, value in changes.items():
    config = support.set_key(config, key, value)
  return config_lib.find_problems(config)


def test_the_defaults_lack_only_a_budget():
  problem, = config_lib.find_problems(Config())
  assert 'train.num_examples' in problem


def test_eval_blocks():
  assert support.make_config(layout__num_blocks=3).eval_blocks == 3
  assert support.make_config(eval__num_blocks=0).eval_blocks == 0
  assert support.make_config(eval__num_blocks=7).eval_blocks == 7
  for method in ('direct', 'cot', 'icot'):
    assert support.make_config(method).eval_blocks == 0


# ---- Every key is live ----
#
# A probe takes (config, tools) and returns something comparable.

NUM_STEPS = 10


def quiet(_):
  pass


def probe_dataset(config, tools):
  found = datasets.load_dataset(config.data, quiet)
  return {name: [(r.question, r.steps, r.answer) for r in split]
          for name, split in found.splits.items()}, found.num_dropped


def probe_dataset_or_error(config, tools):
  """The same where it may be refused, and where there is no network."""
  def refuse(url, timeout):
    raise OSError('no network in a test')
  tools.patch.setattr(gsm8k.urllib.request, 'urlopen', refuse)
  try:
    return probe_dataset(config, tools)
  except UserError as e:
    return str(e)


def probe_cache(config, tools):
  datasets.load_dataset(config.data, quiet)
  return pathlib.Path(config.data.cache_dir).exists() and config.data.cache_dir


def probe_download(config, tools):
  """What is asked of the network."""
  asked = []

  def refuse(url, timeout):
    asked.append(url)
    raise OSError('no network in a test')
  tools.patch.setattr(gsm8k.urllib.request, 'urlopen', refuse)
  with pytest.raises(UserError, match='no network'):
    datasets.load_dataset(config.data, quiet)
  return asked


def probe_tokenizer(config, tools):
  found = tokenizer_lib.load_tokenizer(config.tokenizer)
  return found.fingerprint, found.vocab_size, found.bos_id, found.eos_id, found.encode('12')


def make_stage(config):
  codec = support.make_codec(config)
  split = datasets.load_dataset(config.data, quiet).splits['train']
  return split, codec, source_lib.make_stage_plan(split, codec, 1, quiet)


def probe_plan(config, tools):
  plan = make_stage(config)[2]
  return (plan.num_steps, plan.batch_rows, plan.plan.row_tokens, plan.plan.row_slots,
          plan.plan.records.tolist(), plan.plan.starts.tolist())


def probe_plan_or_error(config, tools):
  try:
    return probe_plan(config, tools)
  except UserError as e:
    return str(e)


def probe_removal(config, tools):
  """How much of each record is removed, and when the optimizer begins anew."""
  plan = make_stage(config)[2]
  return plan.plan.removed.tolist(), plan.reset_steps, plan.counted_from


def probe_batch(config, tools):
  _, codec, plan = make_stage(config)
  batch = source_lib.BatchSource(plan, codec)[0]
  return [x.tolist() for x in jax.tree.leaves(batch)]


def show(jaxpr):
  """A jaxpr as text, with its constants, without addresses."""
  consts = [str(np.asarray(jax.random.key_data(c) if jax.dtypes.issubdtype(
      c.dtype, jax.dtypes.prng_key) else c).tolist()) for c in jaxpr.consts]
  return re.sub(r'0x[0-9a-f]+', '', str(jaxpr)) + ''.join(consts)


def make_program(config):
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  codec = support.make_codec(config)
  return mesh, step_lib.make_program(config, codec.memory_start, NUM_STEPS, mesh)


def probe_step(config, tools):
  """The traced update."""
  mesh, program = make_program(config)
  step = step_lib.make_train_step(program, config, NUM_STEPS, 3, mesh)
  batch = batch_lib.make_empty_rows(4, config.layout.row_tokens, 16)
  return show(jax.make_jaxpr(step)(*program.abstract, batch))


def probe_loss(config, tools):
  """The traced loss of an update, which takes less than tracing its gradient too."""
  _, program = make_program(config)
  batch = batch_lib.make_empty_rows(4, config.layout.row_tokens, 16)

  def compute(state, frozen, batch, key):
    model = transformer_lib.merge_model(program.graphdef, state.params, frozen)
    drops = config.model.dropout or config.model.lora.dropout
    return step_lib.compute_loss(model, batch, state.step, NUM_STEPS, 3, config,
                                 key if drops else None)
  return show(jax.make_jaxpr(compute)(*program.abstract, batch, jax.random.key(0)))


def probe_init(config, tools):
  _, program = make_program(config)
  return show(jax.make_jaxpr(program.make_params)(jax.random.key(0), {}))


def probe_resolved(config, tools):
  return config_lib.flatten(families.resolve(config))


def probe_fresh(config, tools):
  """What a run begins with, or why it cannot."""
  config = families.resolve(config)
  _, program = make_program(config)
  task = train.Task(config, None, None, None, weights.open_base(config.model.init_from))
  try:
    state, _ = state_lib.initialize(task, program, None, quiet)
    return np.asarray(state.params['memory']).tolist()
  except UserError as e:
    return str(e)


def probe_resolved_or_error(config, tools):
  try:
    return probe_resolved(config, tools)
  except UserError as e:
    return str(e)


def probe_decode(config, tools):
  """What a decoder hands to the device, for nine questions."""
  seen = []

  def record(model, config, readouts, trunks, draw=None):
    seen.append((readouts.prefix, readouts.blocks, readouts.max_new_tokens, trunks.tokens.shape))
    return jnp.zeros((trunks.tokens.shape[0], len(readouts.blocks), readouts.max_new_tokens),
                     jnp.int32)
  tools.patch.setattr(decode, 'decode', record)
  tools.patch.setattr(network, 'merge_model', lambda *args: None)
  decoder = decode.Decoder(support.make_network(config))
  decoder.decode_texts([[1, 2, 3]] * 9, 2, [4], (1, 2))
  return seen


def probe_sample(config, tools):
  """The traced decoding of a drawn answer."""
  mesh, program = make_program(config)
  with jax.set_mesh(mesh):
    found = Network(program.graphdef, {}, {}, config, None, mesh)
    return show(found.jit(decode.decode, 1).trace(
        program.abstract[0].params, {}, decode.Readouts((), (1,), 2, 0, 16),
        decode.make_trunks([[1]], 1, 32, 1, config, 16), (np.zeros(1, np.int32), 0)).jaxpr)


def probe_mesh(config, tools):
  return dict(sharding.make_mesh(config.mesh, jax.devices()).shape)


def probe_stages(config, tools):
  return [(s.train, s.model, s.optim, s.layout, s.loop) for _, s in stages_lib.make_stages(config)]


def probe_stage1(config, tools):
  try:
    return str(state_lib.find_init(config, tools.folder / 'stage2'))
  except UserError as e:
    return str(e)


def probe_start(config, tools):
  """What is read of the run that another one starts from."""
  seen, task = [], make_task(config)
  state = step_lib.TrainState(0, True, {}, ())

  def restore(found, name, abstract):
    seen.append(name)
    return {'opt_state': ()}
  tools.patch.setattr(card_lib, 'load_card', lambda folder: {
      'config': dataclasses.asdict(config), 'tokenizer': task.codec.tokenizer.fingerprint})
  tools.patch.setattr(state_lib, 'is_complete', lambda folder: True)
  tools.patch.setattr(state_lib, 'load_network',
                      lambda *args, **kwargs: (support.make_network(config), 7))
  tools.patch.setattr(checkpoint_lib, 'lead_choice', lambda folder, which: folder)
  tools.patch.setattr(checkpoint_lib, 'restore', restore)
  program = types.SimpleNamespace(make_state=lambda params: state, abstract=(state, {}))
  state_lib.initialize(task, program, tools.folder, seen.append)
  return seen


def make_task(config):
  return train.Task(config, datasets.load_dataset(config.data, quiet), support.make_codec(config),
                    sharding.make_mesh(config.mesh, jax.devices()[:1]), None)


def make_result(count):
  return values.EvalResult(n=count, final_acc=0.5, block_acc=[0.5])


def probe_evaluation(config, tools):
  """What an evaluation reads and leaves."""
  seen = []

  def load_network(task, workdir, which, say=None):
    seen.append(which)
    return support.make_network(task.config), 7

  def decode_records(decoder, records, num_blocks, say=None):
    seen.append(([r.origin for r in records], num_blocks))
    return make_result(len(records)), [
        values.Prediction(question=r.question, answer=r.answer, correct=True) for r in records]

  def time_runs(*args):
    seen.append(args[3:5])
    return {'ttft_ms': 1.0}
  tools.patch.setattr(state_lib, 'load_network', load_network)
  tools.patch.setattr(scores, 'evaluate', decode_records)
  tools.patch.setattr(scores, 'evaluate_steps', lambda *args: {})
  tools.patch.setattr(scores, 'evaluate_budgets', lambda *args: seen.append(args[2]) or {})
  tools.patch.setattr(scores, 'evaluate_passes', lambda *args: seen.append(
      args[0].network.config.eval.budget_passes) or [])
  tools.patch.setattr(scores, 'evaluate_tokens', lambda *args: seen.append(
      ['M', args[0].network.config.eval.budget_tokens]) or [])
  tools.patch.setattr(scores, 'evaluate_samples', lambda *args: (
      {'num_samples': args[0].network.config.eval.num_samples}, [0] * len(args[1])))
  tools.patch.setattr(latency, 'measure_run', time_runs)
  return seen, reader.to_tree(
      run_scores.evaluate_run(make_task(config), tools.make_folder(), quiet))


def probe_loop(config, tools):
  """What the loop asks of its parts and when, with an update that does nothing."""
  seen = []

  class Checkpointer:
    def __init__(self, workdir, config, say):
      seen.append(('keep', config.keep_last, config.keep_every_steps))
    __enter__ = lambda self: self
    __exit__ = lambda self, *unused: None
    find_latest = poll = finish = lambda self: None
    save = lambda self, step, *rest: seen.append(('save', step))

  state = types.SimpleNamespace(step=0, healthy=True, params={}, opt_state={})
  values = {'loss': 1.0, 'grad_norm': 1.0, 'learning_rate': 1.0, 'norm': 1.0, 'healthy': True,
            'block_nll': np.ones(4), 'block_weight': np.ones(4), 'block_count': np.ones(4),
            'num_examples': 1, 'num_tokens': 1, 'added': {}}
  step = types.SimpleNamespace()
  step.lower = lambda *args: step
  step.compile = lambda: lambda state, frozen, batch: (state, values)
  make_batches, make_writer = stream.make_batches, recorder.MetricsWriter

  def record_batches(source, start, prefetch, num_workers, say):
    seen.append(('prefetch', prefetch, num_workers))
    return make_batches(source, start, prefetch)

  def record_writer(workdir, start, tensorboard, wandb):
    seen.append(('told', tensorboard, wandb))
    return make_writer(workdir, start, tensorboard)

  def decode_records(decoder, records, *rest):
    seen.append(('valid', len(records)))
    return make_result(len(records)), []
  make_watchdog = hosts.Watchdog

  def record_watchdog(stall_secs):
    seen.append(('stall', stall_secs))
    return make_watchdog(stall_secs)
  tools.patch.setattr(hosts, 'Watchdog', record_watchdog)
  tools.patch.setattr(valid_loss, 'ValidLoss', lambda *args: types.SimpleNamespace(
      compute=lambda state: seen.append('valid loss') or {}))

  def record_profiler(workdir, at_step, num_steps, say):
    seen.append(('profile', at_step, num_steps))
    return make_profiler(workdir, 0, num_steps, say)
  make_profiler = recorder.Profiler
  tools.patch.setattr(recorder, 'Profiler', record_profiler)
  tools.patch.setattr(checkpoint_lib, 'Checkpointer', Checkpointer)
  tools.patch.setattr(state_lib, 'initialize', lambda *args: (state, {}))
  tools.patch.setattr(step_lib, 'make_program',
                      lambda *args: types.SimpleNamespace(graphdef=None))
  tools.patch.setattr(step_lib, 'make_train_step', lambda *args: step)
  tools.patch.setattr(stream, 'make_batches', record_batches)
  tools.patch.setattr(recorder, 'MetricsWriter', record_writer)
  tools.patch.setattr(scores, 'evaluate', decode_records)
  tools.patch.setattr(run_scores, 'evaluate_run', lambda *args: {})
  tools.patch.setattr(train, 'make_task', lambda config, say: make_task(config))
  folder = tools.make_folder()
  with contextlib.suppress(Stopped):
    train.train(config, folder, None, quiet)
  return seen, [line['step'] for line in run_folder.RunFolder(folder).load_metrics()]


def probe_export(config, tools):
  """The files of an export, and how many questions it is asked to verify."""
  config = families.resolve(config)
  mesh, program = make_program(config)
  base = weights.open_base(config.model.init_from)
  codec = support.make_codec(config)
  task = train.Task(config, datasets.load_dataset(config.data, quiet), codec, mesh, base)
  state, frozen = program.init(jax.random.key(0), weights.load_params(base, program.base))
  folder, seen = tools.make_folder(), []
  tools.patch.setattr(state_lib, 'is_complete', lambda folder: True)
  tools.patch.setattr(ask, 'open_run', lambda *args: (task, folder))
  tools.patch.setattr(state_lib, 'load_network', lambda *args, **kwargs: (
      Network(None, state.params, frozen, config, codec, mesh), 7))
  tools.patch.setattr(verification, 'check_verifiable', lambda config: None)
  tools.patch.setattr(verification, 'compare_with_transformers', lambda *args: {})
  tools.patch.setattr(verification, 'iterate_references',
                      lambda *args: iter(seen.append(len(args[-1])) or ()))
  modes.export(config, folder, True, quiet)
  return seen, {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in (folder / 'export').rglob('*') if p.is_file() and p.suffix != '.md'} if (
                    folder / 'export').exists() else 'elsewhere'


def probe_matched(config, tools):
  try:
    return matched_runs.load_matched(config, {'data': ''},
                                     dict.fromkeys(('direct', 'pause'), 'test'))
  except UserError as e:
    return str(e)


def probe_controls(config, tools):
  """What the probes and the reader of attention are given, if they are run."""
  seen, folder = [], tools.make_folder()

  def record(decoder, records, *rest):
    seen.append({split: len(rows) for split, rows in records.items()})
    return {'none': ''}, None
  tools.patch.setattr(ask, 'open_run', lambda *args: (make_task(config), folder))
  tools.patch.setattr(state_lib, 'load_network',
                      lambda *args, **kwargs: (support.make_network(config), 7))
  tools.patch.setattr(interventions, 'run_controls', lambda *args: {
      'controls': {}, 'sweeps': {}, 'pairing': {
          'num_pairs': 1, 'num_equal_answers': 0, 'num_without_partner': 0}})
  tools.patch.setattr(modes.control_sections, 'make_summary', lambda *args: [])
  tools.patch.setattr(modes, '_write_summary', lambda *args: None)
  tools.patch.setattr(probes, 'run_probes', record)
  tools.patch.setattr(attention_weights, 'read_attention',
                      lambda network, records: seen.append(len(records)))
  modes.controls(config, folder, quiet, None)
  return seen


def probe_shown(config, tools):
  seen = []
  tools.patch.setattr(train, 'train_curriculum', lambda *args: {'': {}})
  tools.patch.setattr(modes, '_make_command', lambda *args: '')
  tools.patch.setattr(modes.run_page, 'write_report', lambda *args: None)
  tools.patch.setattr(modes.run_page, 'load_predictions', lambda *args: [])
  tools.patch.setattr(modes.run_page, 'show_results',
                      lambda console, folder, *args: seen.append(args))
  modes.train(config, tools.folder, quiet, None)
  return seen


PROBES = {name.removeprefix('probe_'): f for name, f in list(globals().items())
          if name.startswith('probe_')}

COCONUT = {'method': 'coconut_stage', 'layout.num_blocks': 1}
CODI = {'method': 'codi', 'layout.num_blocks': 1}
AUX = {'aux.decoder': 'shared'}
ICOT = {'method': 'icot', 'icot.remove_per_epoch': 10.0}
STAGE2 = {'method': 'rim_stage2'}
ROPE = {'model.positions': 'rope'}
LLAMA3 = ROPE | {'model.rope_scaling': 'llama3'}
GSM8K = {'data.source': 'gsm8k', 'data.dir': '{files}', 'data.num_valid': 2,
         'tokenizer.kind': 'bytes'}
PERTURBED = GSM8K | {'data.source': 'gsm8k_perturbed', 'data.dir': '{files}/problems',
                     'data.perturbed.variants_per_problem': 3}
PROSQA = {'data.source': 'prosqa', 'tokenizer.kind': 'words', 'data.prosqa.num_train': 20,
          'data.prosqa.num_valid': 3, 'data.prosqa.num_test': 3, 'data.prosqa.min_nodes': 8,
          'data.prosqa.max_nodes': 10, 'data.prosqa.min_hops': 2, 'data.prosqa.max_hops': 3}
DOWNLOAD = {'data.source': 'gsm8k', 'tokenizer.kind': 'bytes'}
FILE = {'tokenizer.kind': 'file', 'tokenizer.path': '{files}/a.json', 'tokenizer.eos_token': '<e>'}
# The shape that a config has before a model directory decides it.
UNSET = {'tokenizer.kind': 'bytes', 'model.num_layers': 4, 'model.embed_dim': 64,
         'model.num_heads': 4, 'model.mlp_dim': 256, 'model.max_positions': 1024}
PRETRAINED = UNSET | {'model.init_from': 'tests/golden/llama', 'model.lora.rank': 2,
                      'optim.trainable': 'lora', 'layout.num_blocks': 2}
SHORT = {'train.num_examples': 40, 'checkpoint.every_steps': 2}

# key -> (probe, changed value, what else is set in both configs)
LIVE = {
    'method': ('batch', 'direct', {}),
    'seed': ('plan', 1, {}),
    'data.source': ('dataset_or_error', 'gsm8k', {'tokenizer.kind': 'bytes'}),
    'data.dir': ('dataset', '{files}/more', GSM8K),
    'data.url': ('download', 'http://elsewhere', DOWNLOAD),
    'data.cache_dir': ('cache', '{files}/other_cache', {}),
    'data.on_bad_rows': ('dataset_or_error', 'drop', GSM8K | {'data.dir': '{files}/bad'}),
    'data.num_valid': ('dataset', 3, GSM8K),
    'data.step_marks': ('dataset', True, GSM8K),
    'data.steps': ('dataset', 'sentences', GSM8K | {'data.dir': '{files}/spoken'}),
    'data.chain.seed': ('dataset', 1, {}),
    'data.chain.min_steps': ('dataset', 2, {}),
    'data.chain.max_steps': ('dataset', 5, {}),
    'data.chain.modulus': ('dataset', 7, {}),
    'data.chain.operators': ('dataset', '+*', {}),
    'data.chain.wrong_frac': ('dataset', 0.5, {}),
    'data.chain.num_train': ('dataset', 41, {}),
    'data.chain.num_valid': ('dataset', 9, {}),
    'data.chain.num_test': ('dataset', 9, {}),
    'data.perturbed.seed': ('dataset', 1, PERTURBED),
    'data.perturbed.variants_per_problem': ('dataset', 4, PERTURBED),
    'data.perturbed.total': ('dataset', 5, PERTURBED),
    'data.prosqa.seed': ('dataset', 1, PROSQA),
    'data.prosqa.min_nodes': ('dataset', 7, PROSQA),
    'data.prosqa.max_nodes': ('dataset', 9, PROSQA),
    'data.prosqa.min_hops': ('dataset', 1, PROSQA),
    'data.prosqa.max_hops': ('dataset', 2, PROSQA),
    'data.prosqa.parent_rate': ('dataset', 0.5, PROSQA),
    'data.prosqa.extra_names': ('dataset', 1.0, PROSQA),
    'data.prosqa.max_facts': ('dataset', 9, PROSQA),
    'data.prosqa.max_children': ('dataset', 1, PROSQA | {
        'data.prosqa.num_names': 3, 'data.prosqa.extra_names': 1.0}),
    'data.prosqa.steps': ('dataset', 'facts', PROSQA),
    'data.prosqa.num_names': ('dataset', 3, PROSQA),
    'data.prosqa.num_concepts': ('dataset', 9, PROSQA),
    'data.prosqa.num_train': ('dataset', 21, PROSQA),
    'data.prosqa.num_valid': ('dataset', 4, PROSQA),
    'data.prosqa.num_test': ('dataset', 4, PROSQA),
    'tokenizer.kind': ('tokenizer', 'bytes', {}),
    'tokenizer.path': ('tokenizer', '{files}/b.json', FILE),
    'tokenizer.bos_token': ('tokenizer', '<b>', FILE),
    'tokenizer.eos_token': ('tokenizer', '<b>', FILE),
    'tokenizer.add_bos': ('batch', True, {}),
    'layout.num_blocks': ('batch', 2, STAGE2),
    'layout.block_tokens': ('batch', 2, {}),
    'layout.readout_sees_question': ('loss', False, {}),
    'layout.bidirectional_blocks': ('loss', True, {}),
    'layout.depth0_readout': ('batch', True, {}),
    'layout.stage2_depth0_readout': ('batch', True, STAGE2),
    'layout.skip_steps': ('batch', 1, COCONUT),
    'layout.paired_readout': ('batch', True, {}),
    'layout.teacher_last_step': ('batch', True, CODI),
    'layout.supervise_prefix': ('batch', True, CODI | {'layout.answer_prefix': '+'}),
    'layout.chat_template': ('resolved_or_error', True, UNSET | {
        'model.init_from': 'tests/golden/llama'}),
    'layout.question_prefix': ('batch', '+', {}),
    'layout.separator': ('batch', '\n', {}),
    'layout.step_prefix': ('batch', '+', {}),
    'layout.answer_prefix': ('batch', '+', {}),
    'layout.answer_suffix': ('batch', '+', {}),
    'layout.step_separator': ('batch', '+', {'method': 'cot', 'layout.answer_prefix': '*'}),
    'layout.row_tokens': ('batch', 63, {}),
    'layout.row_slots': ('batch', 25, {}),
    'layout.pack_window_rows': ('plan', 1, {'data.chain.min_steps': 1}),
    'model.init_from': ('resolved', 'tests/golden/qwen3', UNSET),
    'model.num_layers': ('loss', 3, {}),
    'model.embed_dim': ('loss', 32, {}),
    'model.num_heads': ('loss', 4, {}),
    'model.num_kv_heads': ('loss', 1, {}),
    'model.head_dim': ('loss', 4, {}),
    'model.mlp_dim': ('loss', 16, {}),
    'model.vocab_size': ('loss', 56, {}),
    'model.norm': ('loss', 'layernorm', {}),
    'model.post_norms': ('loss', True, {}),
    'model.norm_eps': ('loss', 1e-4, {}),
    'model.activation': ('loss', 'swiglu', {}),
    'model.positions': ('loss', 'rope', {}),
    'model.max_positions': ('loss', 65, {}),
    'model.rope_theta': ('loss', 5e5, ROPE),
    'model.rope_scaling': ('loss', 'llama3', ROPE),
    'model.rope_factor': ('loss', 4.0, LLAMA3),
    'model.rope_low_freq_factor': ('loss', 2.0, LLAMA3),
    'model.rope_high_freq_factor': ('loss', 5.0, LLAMA3),
    'model.rope_original_positions': ('loss', 32, LLAMA3),
    'model.global_every': ('loss', 2, ROPE),
    'model.local_rope_theta': ('loss', 5e5, ROPE | {'model.global_every': 2}),
    'model.sliding_window': ('plan_or_error', 9, {}),
    'model.bias': ('loss', 'all', {}),
    'model.qk_norm': ('loss', True, {}),
    'model.query_scale_dim': ('loss', 5, {}),
    'model.fused_qkv': ('loss', True, {}),
    'model.tie_embeddings': ('loss', False, {}),
    'model.scale_embeddings': ('loss', True, {}),
    'model.dropout': ('loss', 0.1, {}),
    'model.compute_dtype': ('loss', 'bfloat16', {}),
    'model.frozen_dtype': ('loss', 'float32', {'optim.trainable': 'memory'}),
    'model.attention_tile_tokens': ('loss', 16, {}),
    'model.remat': ('loss', 'full', {}),
    'model.scan_layers': ('loss', False, {}),
    'model.memory_init': ('init', 'normal', {}),
    'model.memory_token': ('init', 3, {'model.memory_init': 'token'}),
    'model.memory_noise': ('init', 0.1, {}),
    'model.lora.rank': ('loss', 2, {}),
    'model.lora.alpha': ('loss', 16.0, {'model.lora.rank': 2}),
    'model.lora.dropout': ('loss', 0.1, {'model.lora.rank': 2}),
    'model.lora.shared_dropout': (
        'loss', True, {'model.lora.rank': 2, 'model.lora.dropout': 0.1}),
    'model.lora.init_from': ('fresh', '{files}/nothing', PRETRAINED),
    'model.lora.targets': ('loss', 'query|up', {'model.lora.rank': 2}),
    'curriculum.schedule': ('loss', 'uniform', {}),
    'curriculum.hold_frac': ('loss', 0.5, {}),
    'curriculum.absolute_steps': ('loss', 7, {'curriculum.schedule': 'absolute'}),
    'curriculum.alpha': ('loss', 'final', STAGE2),
    'curriculum.reduction': ('loss', 'token', {}),
    'curriculum.normalize': ('loss', 'readouts', {}),
    'curriculum.stage1_frac': ('stages', 0.5, {'method': 'rim'}),
    'curriculum.stage2_learning_rate_scale': ('stages', 0.5, {'method': 'rim'}),
    'curriculum.stage2_dropout': ('stages', 0.5, {'method': 'rim'}),
    'curriculum.stage2_lora_dropout': ('stages', 0.5, {'method': 'rim'}),
    'curriculum.inside_weight': ('batch', 0.5, {}),
    'curriculum.reset_optimizer': ('start', False, {}),
    'curriculum.continue_data': ('stages', True, {'method': 'rim'}),
    'loop.num_passes': ('loss', 2, {}),
    'loop.rule': ('loss', 'add', {'loop.num_passes': 2}),
    'loop.projection': ('loss', True, {'loop.num_passes': 2, 'loop.rule': 'shift'}),
    'icot.remove_per_epoch': ('removal', 20.0, ICOT),
    'icot.remove_all_beyond_tokens': ('removal', 4, ICOT),
    'icot.smoothing': ('removal', 0.5, ICOT),
    'icot.hold_epochs': ('removal', 0.1, ICOT),
    'icot.reset_optimizer': ('removal', False, ICOT),
    'coconut.num_stages': ('stages', 4, {'method': 'coconut'}),
    'coconut.thoughts_per_step': ('stages', 1, {'method': 'coconut'}),
    'coconut.stage_frac': ('stages', 0.1, {'method': 'coconut'}),
    'codi.projection': ('loss', False, CODI),
    'distill.weight': ('loss', 2.0, CODI),
    'distill.teacher_weight': ('loss', 2.0, CODI),
    'distill.std': ('loss', 'layer', CODI),
    'lotus.num_stages': ('stages', 5, {'method': 'lotus'}),
    'lotus.latents_per_step': ('stages', 4, {'method': 'lotus'}),
    'lotus.step_weight': ('loss', 0.5, {'method': 'lotus_stage'}),
    'lotus.stage_frac': ('stages', 0.1, {'method': 'lotus'}),
    'lotus.one_pass': ('stages', True, {'method': 'lotus'}),
    'aux.decoder': ('batch', 'shared', CODI),
    'aux.weight': ('loss', 2.0, CODI | AUX),
    'aux.group_tokens': ('batch', 2, CODI | AUX | {'layout.block_tokens': 2}),
    'aux.last_step': ('batch', False, CODI | AUX),
    'aux.answer_fills': ('batch', True, CODI | AUX | {'layout.block_tokens': 6}),
    'optim.trainable': ('step', 'memory', {}),
    'optim.learning_rate': ('step', 0.123, {}),
    'optim.warmup_frac': ('step', 0.5, {}),
    'optim.decay': ('step', 'cosine', {}),
    'optim.b1': ('step', 0.5, {}),
    'optim.b2': ('step', 0.5, {}),
    'optim.eps': ('step', 1e-4, {}),
    'optim.weight_decay': ('step', 0.5, {}),
    'optim.clip_norm': ('step', 0.5, {}),
    'train.num_examples': ('plan', 60, {}),
    'train.num_epochs': ('plan', 2.0, {'train.num_examples': 0, 'train.num_epochs': 1.0}),
    'train.batch_examples': ('plan', 20, {'train.batch_rows': 0, 'train.batch_examples': 8}),
    'train.batch_rows': ('plan', 5, {}),
    'train.skip_examples': ('plan', 8, {}),
    'train.skip_epochs': ('plan', 0.5, {}),
    'train.num_micro_batches': ('step', 2, {}),
    'train.init_from': ('stage1', '{files}/mine', STAGE2),
    'mesh.data': ('mesh', 8, {'mesh.fsdp': -1, 'mesh.data': 4}),
    'mesh.fsdp': ('mesh', 2, {}),
    'mesh.tensor': ('mesh', 2, {}),
    'mesh.slice': ('mesh', 2, {}),
    'checkpoint.every_steps': ('loop', 1, SHORT),
    'checkpoint.every_minutes': ('loop', 1e-9, SHORT | {'checkpoint.every_steps': 10}),
    'checkpoint.keep_last': ('loop', 3, SHORT),
    'checkpoint.keep_every_steps': ('loop', 1, SHORT),
    'checkpoint.stop_frac': ('loop', 0.5, SHORT),
    'eval.split': ('evaluation', 'valid', {}),
    'eval.path': ('evaluation', '{files}/harder.jsonl', GSM8K | {
        'eval.split': 'gsm_hard', 'eval.path': '{files}/hard.jsonl'}),
    'eval.sets': ('evaluation', 'more={files}/hard.jsonl', GSM8K),
    'eval.checkpoint': ('evaluation', 'last', {}),
    'eval.num_blocks': ('evaluation', 0, {}),
    'eval.num_passes': ('evaluation', 3, {'loop.num_passes': 2}),
    'eval.budget_blocks': ('evaluation', 4, {}),
    'eval.budget_passes': ('evaluation', 2, {'loop.num_passes': 2}),
    'eval.budget_tokens': ('evaluation', 2, {}),
    'eval.num_samples': ('evaluation', 3, {}),
    'eval.temperature': ('sample', 0.1, {}),
    'eval.batch_size': ('decode', 9, {}),
    'eval.max_new_tokens': ('decode', 5, {}),
    'eval.num_examples': ('evaluation', 3, {}),
    'eval.num_valid_examples': ('loop', 3, SHORT),
    'eval.valid_loss': ('loop', True, SHORT),
    'eval.num_shown': ('shown', 1, {}),
    'eval.num_latency_runs': ('evaluation', 2, {}),
    'eval.latency_batch_sizes': ('evaluation', '2,3', {'eval.num_latency_runs': 2}),
    'export.dir': ('export', '{files}/exported', PRETRAINED),
    'export.adapters': ('export', True, PRETRAINED),
    'export.untie': ('export', False, PRETRAINED),
    'export.dtype': ('export', 'float32', PRETRAINED),
    'export.max_shard_gb': ('export', 2e-5, PRETRAINED),
    'export.num_verified': ('export', 3, PRETRAINED),
    'controls.direct_dir': ('matched', '{files}', STAGE2),
    'controls.pause_dir': ('matched', '{files}', STAGE2),
    'controls.probes': ('controls', True, STAGE2),
    'controls.num_probe_examples': ('controls', 3, STAGE2 | {'controls.probes': True}),
    'controls.probe_split': ('controls', 'valid', STAGE2 | {
        'controls.probes': True, 'controls.num_probe_examples': 3}),
    'controls.num_attention': ('controls', 3, STAGE2),
    'log.every_steps': ('loop', 3, SHORT),
    'log.tensorboard': ('loop', True, SHORT),
    'log.wandb': ('loop', 'project', SHORT),
    'log.prefetch_batches': ('loop', 1, SHORT),
    'log.input_workers': ('loop', 1, SHORT),
    'log.profile_at_step': ('loop', 1, SHORT),
    'log.profile_num_steps': ('loop', 2, SHORT),
    'log.stall_secs': ('loop', 1.0, SHORT),
}


def test_every_key_is_in_the_table():
  """A key that is added without a probe, or one that is gone, fails here."""
  assert list(LIVE) == list(config_lib.flatten(Config()))


class Tools:
  """What the probes share: a folder, and patches that last for one probe."""

  def __init__(self, folder):
    self.folder = folder
    self.patch = None
    self._count = 0
    self._seen = {}

  def make_folder(self):
    self._count += 1
    folder = self.folder / f'run{self._count}'
    folder.mkdir()
    return folder

  def fill(self, value):
    return value.format(files=self.folder) if isinstance(value, str) else value

  def look(self, probe, changes):
    """A probe of the small config with these changes, remembered."""
    key = probe, *changes.items()
    if key not in self._seen:
      self._seen[key] = self.look_anew(probe, changes)
    return self._seen[key]

  def look_anew(self, probe, changes):
    values = {'data.cache_dir': str(self.folder / 'cache')} | changes
    config = support.make_config(**{k.replace('.', '__'): self.fill(v) for k, v in values.items()
                                    if k != 'method'},
                                 method=values.get('method', 'rim_stage1'))
    with pytest.MonkeyPatch.context() as self.patch:
      return PROBES[probe](config, self)


@pytest.fixture(scope='module')
def tools(tmp_path_factory):
  folder = tmp_path_factory.mktemp('files')
  for place, count in ((folder, 8), (folder / 'more', 9), (folder / 'bad', 8)):
    place.mkdir(exist_ok=True)
    rows = [{'question': f'{i}?', 'steps': [f'{i}+1={i + 1}'], 'answer': str(i)}
            for i in range(count)]
    lines = ''.join(json.dumps(r) + '\n' for r in rows)
    (place / 'train.jsonl').write_text(lines + ('nonsense\n' if place.name == 'bad' else ''))
    (place / 'test.jsonl').write_text(lines)
  for name in ('hard', 'harder'):
    (folder / f'{name}.jsonl').write_text('{"question": "1?", "answer": "1"}\n')
  (folder / 'spoken').mkdir()
  for name in ('train', 'test'):
    (folder / 'spoken' / f'{name}.jsonl').write_text(''.join(json.dumps({
        'question': f'{i}?', 'answer': f'One more is <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}'})
                                                                     + '\n' for i in range(8)))
  (folder / 'problems').mkdir()
  for name, words in (('train', 'apples pears plums figs buns'), ('test', 'nuts')):
    (folder / 'problems' / f'{name}.jsonl').write_text(''.join(json.dumps({
        'question': f'Tom has 40 {word} and eats 15. How many are left?', 'steps': ['40-15=25'],
        'answer': '25'}) + '\n' for word in words.split()))
  import tokenizers
  for name, extra in (('a', []), ('b', ['12'])):
    vocab = {t: i for i, t in enumerate(['<e>', '<b>', '1', '2', *extra])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab=vocab, merges=[('1', '2')] if extra else []))
    tokenizer.save(str(folder / f'{name}.json'))
  (folder / 'mine').mkdir()
  (folder / 'mine' / 'config.json').write_text('{}')
  return Tools(folder)


@pytest.mark.parametrize('key', LIVE)
def test_every_key_is_live(key, tools):
  probe, value, base = LIVE[key]
  before = tools.look(probe, base)
  after = tools.look(probe, base | {key: value})
  assert before != after


@pytest.mark.parametrize('probe', ['step', 'loss', 'init', 'plan', 'batch', 'loop', 'evaluation'])
def test_probes_see_nothing_where_nothing_changed(probe, tools):
  """Otherwise the test above would pass for a dead key."""
  base = SHORT if probe == 'loop' else {}
  assert tools.look_anew(probe, base) == tools.look_anew(probe, base)


def test_runtime_keys_are_keys():
  """What a resumed run may change is spelled right, and is what decides where and when."""
  flat = config_lib.flatten(Config())
  assert set(config_lib.RUNTIME_KEYS) <= set(flat)
  assert {f'{s}.' for s in config_lib.RUNTIME_SECTIONS} <= {k.partition('.')[0] + '.' for k in flat}


def test_config_dict_is_what_recipes_get():
  assert isinstance(config_lib.make_config_dict(), ml_collections.ConfigDict)


@pytest.mark.parametrize('key', ['optim.learning_rat', 'optimizer.learning_rate', 'loop'])
def test_a_key_that_is_not_there_is_not_silently_left_as_it_was(key):
  assert config_lib.replace_keys(Config(), {'optim.learning_rate': 0.5}).optim.learning_rate == 0.5
  with pytest.raises(KeyError, match=key):
    config_lib.replace_keys(Config(), {key: 0.5})
