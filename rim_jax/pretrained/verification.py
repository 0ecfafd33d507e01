"""An export held to its run: logits and answers that transformers computes from it on the CPU."""

import contextlib
import dataclasses
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rim_jax.config import Config
from rim_jax.errors import RunError, UserError, check
from rim_jax.packing import layout as layout_lib
from rim_jax.packing import source
from rim_jax.pretrained import prompts
from rim_jax.runtime import hosts

FP32_TOLERANCE = 1e-4  # of the rms of a token's logits
BF16_FACTOR = 2.0  # of the distance that rounding to bfloat16 alone makes


def check_verifiable(config: Config) -> None:
  """Raises: UserError where `compare_with_transformers` could not run."""
  check((config.export.adapters,
         '--verify compares merged weights; use it with --config.export.adapters=False'),
        *((importlib.util.find_spec(package) is None,
           f"--verify needs {package}; install it with pip install -e '.[hf]'")
          for package in ('torch', 'transformers')))


@dataclasses.dataclass(frozen=True)
class Reference:
  """What a run computes for one question, which an export is held to."""
  question: str
  ids: list[int]  # of the prompt
  logits_tv: np.ndarray  # of the prompt, computed in float32
  rounded_tv: np.ndarray | None  # the same computed in bfloat16, where the export is in that
  text: str  # the answer


def iterate_references(decoder, questions):
  """A `Reference` of each question; every process takes part.

  `decoder` is an `evaluation.decode.Decoder` of the run's network.
  """
  network, config, codec = decoder.network, decoder.network.config, decoder.network.codec
  encoded = [codec.encode_question(q) for q in questions]
  prefix = [] if config.facts.writes_steps else codec.template.answer_prefix
  texts, _ = decoder.decode_texts(encoded, config.eval_blocks, prefix, (config.eval_blocks,))
  compute = network.jit(_compute_logits, 1)

  _, most = source.find_reach(config.model)

  def get_logits(dtype, prompt):
    # Few widths, so that few are compiled; no token sees the padding behind it.
    width = 1 << (len(prompt) - 1).bit_length()
    ids_t = np.zeros(min(width, most or width), np.int32)
    ids_t[:len(prompt)] = prompt
    with jax.default_matmul_precision('float32'):
      return hosts.fetch(compute(*network.arrays, dtype, ids_t[None]))[0].astype(
          np.float32)[:len(prompt), :codec.tokenizer.vocab_size]
  for question, ids, (text,) in zip(questions, encoded, texts):
    trunk = layout_lib.make_trunk(ids, config.eval_blocks, config.layout, codec.memory_start)
    prompt = [*trunk, *prefix]
    rounded = get_logits('bfloat16', prompt) if config.export.dtype == 'bfloat16' else None
    yield Reference(question, prompt, get_logits('float32', prompt), rounded, text)


def _compute_logits(model, config, dtype, ids_bt):
  """Logits of plain ids under a plain causal mask, computed in `dtype`."""
  model.config = dataclasses.replace(model.config, compute_dtype=dtype)
  t = ids_bt.shape[1]
  x_btd, _ = model(ids_bt, jnp.arange(t)[None], jnp.tril(jnp.ones((1, t, t), bool)))
  return model.compute_logits(x_btd)


def _measure(found_tv, reference: Reference) -> tuple:
  """How far an export's logits of one prompt are from the run's in float32; a nan is kept in all.

  Returns: (the largest distance; of a token's rms; and sums of the squares of the distances, of
    those of the run's own bfloat16, and of the logits).
  """
  want_tv = reference.logits_tv
  apart_t = np.abs(found_tv - want_tv).max(-1)
  own_tv = want_tv if reference.rounded_tv is None else reference.rounded_tv
  return (apart_t.max(), (apart_t / np.sqrt((want_tv**2).mean(-1))).max(), *(
      np.square(x, dtype=np.float64).sum()
      for x in (found_tv - want_tv, own_tv - want_tv, want_tv)))


def _sum_up(measured: list[tuple]) -> dict[str, float]:
  """The distances of all prompts, as export.json has them."""
  worst, worst_of_rms, *squares = np.transpose(measured)
  export, own, logits = map(sum, squares)
  return {'max_logit_difference': float(worst.max()),
          'max_difference_of_rms': float(worst_of_rms.max()),
          'distance_of_rms': float(export / logits)**0.5,
          'own_distance_of_rms': float(own / logits)**0.5}


@contextlib.contextmanager
def _tell_theirs(folder):
  """Tells in one line what transformers or torch raise, which may be of any kind.

  Raises: UserError; RunError where there was no memory, which another time there may be.
  """
  try:
    yield
  except Exception as e:  # pylint: disable=broad-except
    told = ' '.join(f'{type(e).__name__}: {e}'.split())
    kind = RunError if 'alloc' in told or isinstance(e, MemoryError) else UserError
    raise kind(f'{folder.name}: transformers cannot run it ({told[:300]}); nothing was written; '
               "install another version with pip install -e '.[hf]', give it more memory, or leave "
               'out --verify') from e


def compare_with_transformers(folder, config: Config, codec, references, say=print) -> dict:
  """Loads an export in transformers on the CPU and holds it to the run, question by question.

  Compares the logits of the whole prompt over the base vocabulary, and the text that plain
  `generate()` gives on the prompt string with the run's own greedy answer.
  Returns: what was compared, with the distances of logits and the answers that agree.
  Raises: UserError where an fp32 export is more than FP32_TOLERANCE away from the run's logits in
    float32, or one of an fp32 run answers otherwise; where a bf16 export is further away from them
    than BF16_FACTOR times the run's own in bfloat16; where any logit is not finite; and, or
    RunError, where transformers fails.
  """
  with _tell_theirs(folder):
    import torch
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='auto').eval()
  measured, num_equal = [], 0
  first = codec.tokenizer.vocab_size  # id of a block
  to_export = {codec.memory_start + i: first + i for i in range(len(prompts.BLOCK_TOKENS))}
  for reference in references:
    text = prompts.make_prompt(reference.question, config)
    with _tell_theirs(folder):
      prompt = tokenizer(text, return_tensors='pt').input_ids
    if prompt.tolist() != [[to_export.get(i, i) for i in reference.ids]]:
      raise UserError(f'{folder.name}: transformers ({type(tokenizer).__name__}) makes other '
                      f'tokens of the prompt of {reference.question[:60]!r} than tokenizer.json; '
                      'use the tokenizer.json that belongs to this model; nothing was written')
    with _tell_theirs(folder), torch.no_grad():
      found = model(prompt).logits[0, :, :reference.logits_tv.shape[1]].float().numpy()
      out = model.generate(prompt, attention_mask=torch.ones_like(prompt),
                           max_new_tokens=config.eval.max_new_tokens)
    measured.append(_measure(found, reference))
    new = itertools.takewhile(lambda i: i != codec.tokenizer.eos_id,
                              out[0, prompt.shape[1]:].tolist())
    num_equal += codec.tokenizer.decode(list(new)) == reference.text
  distances, num_questions = _sum_up(measured), len(measured)
  told, is_same = _judge_distances(distances, config)
  answers = f'{num_equal} of {num_questions} answers equal'
  say(f'transformers {transformers.__version__}: {told}; {answers}')
  must_agree = config.export.dtype == config.model.compute_dtype == 'float32'
  if not is_same or (must_agree and num_equal < num_questions):
    raise UserError(f'{folder.name}: transformers computes other logits or answers from it than '
                    f'the run does ({told}; {answers}); nothing was written')
  return {'transformers': transformers.__version__, 'num_questions': num_questions,
          **distances, 'num_answers_equal': num_equal, 'dtype': config.export.dtype,
          'compute_dtype': config.model.compute_dtype}


def _judge_distances(distances: dict[str, float], config: Config) -> tuple[str, bool]:
  """(what the logits of an export are, whether they are those of the run)."""
  worst, worst_of_rms, mine, own = distances.values()
  if config.export.dtype == 'float32':
    return (f"logits at most {worst:.2g} apart, {worst_of_rms:.2g} of a token's rms (float32, "
            f'limit {FP32_TOLERANCE:g})', worst_of_rms <= FP32_TOLERANCE)
  return (f"logits {mine:.2g} of their rms from the run's in float32, the run's own in bfloat16 "
          f'{own:.2g} (limit {BF16_FACTOR:g} times that)',
          np.isfinite(worst) and mine <= BF16_FACTOR * own)
