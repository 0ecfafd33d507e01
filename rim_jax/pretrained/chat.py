"""A model's chat template, which is somebody's program: rendered in a process of its own.

There it has a sandbox, and neither more seconds nor more memory than a template needs.
"""

import json
import subprocess
import sys

from rim_jax import reader
from rim_jax.errors import UserError

_SECONDS, _BYTES = 10, 1 << 30
_MOST_CHARACTERS = 1 << 20  # of a template, and of what it makes

# `-c` and not a module of this package: nothing else is imported there.
_PROGRAM = f'''
import json, sys
try:
  import resource
  resource.setrlimit(resource.RLIMIT_AS, ({_BYTES}, {_BYTES}))
  resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS}, {_SECONDS}))
except (ImportError, ValueError, OSError):
  pass  # the parent's clock is left
from jinja2 import ext, sandbox
asked = json.load(sys.stdin)
class Refused(Exception):
  pass
def refuse(message):
  raise Refused(message)
class Generation(ext.Extension):  # marks what a model writes; transformers makes a mask of it
  tags = {{'generation'}}
  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(['name:endgeneration'], drop_needle=True)
environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols', Generation])
try:
  found = dict(text=environment.from_string(asked['template']).render(
      messages=[dict(role='user', content=asked['question'])], add_generation_prompt=True,
      bos_token=asked['bos_token'], eos_token=asked['eos_token'],
      raise_exception=refuse)[:{_MOST_CHARACTERS}])
except Refused as e:
  found = dict(error=str(e))
except MemoryError:
  found = dict(error='the chat template fails (it takes more than {_BYTES >> 20} MiB)')
except BaseException as e:
  found = dict(error=f'the chat template fails ({{e}})')
json.dump(found, sys.stdout)
'''


def render(where, template: str, question: str, bos_token: str, eos_token: str) -> str:
  """What a template makes of one user's question, without a date.

  Raises: UserError in one line, named by `where`: for a template that fails, or takes too much.
  """
  if len(template) > _MOST_CHARACTERS:
    raise UserError(f'{where}: the chat template has {len(template):,} characters')
  asked = {'template': template, 'question': question, 'bos_token': bos_token,
           'eos_token': eos_token}
  try:
    # -P: nothing is imported from where the run was started.
    done = subprocess.run([sys.executable, '-P', '-c', _PROGRAM], input=json.dumps(asked).encode(),
                          capture_output=True, timeout=_SECONDS, check=False)
    found = reader.parse_json(done.stdout) if done.returncode == 0 else {
        'error': f'the chat template fails (its process ended with {done.returncode})'}
  except subprocess.TimeoutExpired:
    found = {'error': f'the chat template fails (it takes more than {_SECONDS} s)'}
  if 'error' in found:
    text = ' '.join(found['error'].split())
    raise UserError(f'{where}: {text[:300]}; use --config.layout.chat_template=False')
  return found['text']
