"""The roll call: every process of a run comes to process 0 before JAX starts, or is named.

JAX's own rendezvous aborts without saying who is missing. Here process 0 listens at the
coordinator's address, asks each that connects who it is, and tells all of them how it ended. Anyone
may connect to an open port, so nothing that a connection does or fails to do may end the wait:

  process 0 -> peer    nonce                                  (32 hex digits and a line end)
  peer -> process 0    id count hmac-sha256(token, nonce id count)
  process 0 -> peer    'go', or what is wrong

The token is in the environment of all processes of a run (`launch/` puts it there) and never on a
command line, where everybody on the machine could read it.
"""

import asyncio
import atexit
import collections
import contextlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import sys
import threading
import time

from rim_jax.errors import HostError

TOKEN = 'RIM_JAX_TOKEN'
EXIT_STALLED = 76  # another process is gone, or none gets on: start all of them again
_ANSWER_SECS, _LONGEST = 5.0, 256  # what a connection is given to say who it is
_MOST_PENDING = 256  # connections that have not yet said who they are
_GOODBYE = b'goodbye'


def find_bind_host(coordinator: str, token: str) -> str:
  """The address to listen on; '' for all of this machine's, '::' where that is by IPv6 too.

  Without a token only the coordinator's own address is open. A host's name may lead to a loopback
  address on the host itself (Debian's 127.0.1.1), where others could not come: then it is all.
  """
  host = _get_host(coordinator)
  try:
    found = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    loopback = ipaddress.ip_address(found).is_loopback
  except (OSError, ValueError):
    return host  # listening there will say what is wrong
  if loopback:
    return found if host in ('localhost', found) else ''
  if not token:
    return found
  return '::' if ':' in found else ''


def _get_host(coordinator):
  return coordinator.rpartition(':')[0].strip('[]')


def call_roll(coordinator: str, num_processes: int, process_id: int, timeout_secs: float,
              token: str = '') -> None:
  """Waits at the coordinator's address until all processes are there.

  Raises: HostError on every process that came, naming those that did not.
  """
  port = int(coordinator.rpartition(':')[2])
  deadline = time.monotonic() + timeout_secs
  if process_id:
    verdict = _report_in((_get_host(coordinator), port), process_id, num_processes, deadline, token)
  else:
    verdict = asyncio.run(_Roll(num_processes, token).hear(
        (find_bind_host(coordinator, token), port), deadline))
  if verdict != 'go':
    raise HostError(f'{coordinator}: {verdict}')


def _keep_lines(lines) -> None:
  """Keeps the connections of the roll call for as long as this process lives.

  When process 0 dies its kernel closes them, which the others hear at once; JAX's own abort would
  not say who it was.
  """
  def say_goodbye():
    for line in lines:
      with contextlib.suppress(OSError):
        line.sendall(_GOODBYE)
  atexit.register(say_goodbye)  # which holds them until then


def _listen(line) -> None:
  line.settimeout(None)
  line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # no firewall forgets it
  try:
    heard = line.recv(len(_GOODBYE))
  except ConnectionResetError:
    heard = b''
  except OSError:
    return  # the network's trouble: the watchdog will tell whether it lives
  if heard != _GOODBYE:
    print('error: process 0 is gone; start all again', file=sys.stderr, flush=True)
    os._exit(EXIT_STALLED)


def _sign(token: str, nonce: str, number: int, count: int) -> str:
  return hmac.digest(token.encode(), f'{nonce} {number} {count}'.encode(), 'sha256').hex()


def _warn(text):
  print(f'warning: {text}', file=sys.stderr, flush=True)


def _open_listener(address) -> socket.socket:
  host, port = address
  if host == '::':
    with contextlib.suppress(OSError):  # of a machine whose IPv6 is switched off
      return socket.create_server(address, family=socket.AF_INET6, backlog=_MOST_PENDING,
                                  dualstack_ipv6=socket.has_dualstack_ipv6())
    host = ''
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  return socket.create_server((host, port), family=family, backlog=_MOST_PENDING)


class _Roll:
  """Process 0's side: a coroutine for each connection, and one that waits for all of them."""

  def __init__(self, num_processes: int, token: str):
    self._count, self._token = num_processes, token
    self._there: dict[int, asyncio.StreamWriter] = {}
    self._num_pending = 0  # connections that have not yet said who they are
    self._strangers = collections.Counter()  # address -> connections of no process of this run
    self._refused: dict[str, None] = {}  # what processes said that cannot be right

  async def hear(self, address, deadline) -> str:
    """'go', or what is wrong; told to all who came."""
    try:
      listener = _open_listener(address)
    except OSError as e:
      return (f'cannot listen there ({e.strerror}): is another run using the port? take another '
              'one, and give it to every process; if this machine does not have that address '
              f'itself, set the same {TOKEN} for every process')
    if not self._token:
      _warn(f'the processes have no {TOKEN} in common, so any program that reaches port '
            f'{address[1]} may pass for one of them; the launchers in launch/ set it')
    self._verdict = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(
        self._meet, sock=listener, limit=_LONGEST, backlog=_MOST_PENDING)
    self._look()
    try:
      async with asyncio.timeout_at(deadline):  # the loop's clock is time.monotonic
        verdict = await self._verdict
    except TimeoutError:
      verdict = '; '.join([
          f'of {self._count} processes, {", ".join(map(str, self._list_missing()))} did not come',
          *self._refused, 'look at their logs, and start all of them again'])
    server.close()
    for writer in self._there.values():
      writer.write(verdict.encode())
    if self._strangers:
      told = ', '.join(f'{n} from {address}' for address, n in self._strangers.items())
      _warn(f'connections to the coordinator that were no process of this run: {told}; left alone')
    if verdict == 'go':  # the loop closes its own
      _keep_lines([w.get_extra_info('socket').dup() for w in self._there.values()])
    return verdict

  async def _meet(self, reader, writer) -> None:
    """Hears one connection until it ends; anyone may have opened it."""
    address = writer.get_extra_info('peername')[0]
    # Those that are here at the end are cancelled, each of which Python 3.11 would show.
    with contextlib.closing(writer), contextlib.suppress(asyncio.CancelledError):
      said = await self._ask(reader, writer)
      if said is None:
        self._strangers[address] += 1
        return
      number, count = said
      if count != self._count or not 0 < number < count or number in self._there:
        self._refuse(writer, f'process {number} at {address} says it is one of {count}')
        return
      self._there[number] = writer
      self._look()
      with contextlib.suppress(OSError):
        while await reader.read(_LONGEST):  # it says no more
          pass
      del self._there[number]

  async def _ask(self, reader, writer) -> tuple[int, int] | None:
    """(number, count) as one says who knows the token; None from anyone else."""
    nonce = secrets.token_hex(16)
    self._num_pending += 1
    try:
      if self._num_pending > _MOST_PENDING:
        return None
      writer.write(f'{nonce}\n'.encode())
      async with asyncio.timeout(_ANSWER_SECS):
        number, count, proof = (await reader.readline()).split()
      number, count = int(number), int(count)
      # As bytes: of texts it refuses all but ASCII by a TypeError.
      known = hmac.compare_digest(proof, _sign(self._token, nonce, number, count).encode())
    except (OSError, ValueError):
      return None
    finally:
      self._num_pending -= 1
    return (number, count) if known else None

  def _refuse(self, writer, said: str) -> None:
    """One that was started wrongly: it ends this run where it is known to be of it."""
    verdict = (f'{said}, twice or of another run; here are {self._count}; give every process its '
               'own --process_id and the same --num_processes')
    writer.write(verdict.encode())
    if self._token:
      self._decide(verdict)
    elif verdict not in self._refused:  # it may be anyone: the real one can still come
      self._refused[verdict] = None
      _warn(verdict)

  def _look(self) -> None:
    if not self._list_missing():
      self._decide('go')

  def _decide(self, verdict: str) -> None:
    if not self._verdict.done():
      self._verdict.set_result(verdict)

  def _list_missing(self) -> list[int]:
    return sorted(set(range(1, self._count)) - set(self._there))


_ENDED = f'it ends the connection: is it of another run, or has it another {TOKEN}?'


def _report_in(address, process_id, num_processes, deadline, token):
  problem = 'nothing listens there'
  while time.monotonic() < deadline:
    try:
      with contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(address, timeout=_ANSWER_SECS))
        nonce = peer.recv(_LONGEST).decode('ascii', errors='replace').strip()
        if nonce and not re.fullmatch('[0-9a-f]{32}', nonce):
          raise OSError(f'another program listens there: it says {nonce[:40]!r}')
        proof = _sign(token, nonce, process_id, num_processes)
        peer.sendall(f'{process_id} {num_processes} {proof}\n'.encode())
        # The first process gives up at its own deadline, and says so.
        peer.settimeout(max(deadline - time.monotonic(), 0.01) + 10)
        verdict = peer.recv(4096).decode(errors='replace')
        if verdict == 'go':
          stack.pop_all()
          threading.Thread(target=_listen, args=(peer,), daemon=True).start()
        if verdict:
          return verdict
        problem = _ENDED
    except (ConnectionResetError, BrokenPipeError):  # the same, before it has read what it was told
      problem = _ENDED
    except OSError as e:
      problem = e.strerror or str(e) or problem
    time.sleep(0.2)
  return (f'process {process_id} cannot reach process 0 ({problem}); is it running, and is this '
          'its address?')
