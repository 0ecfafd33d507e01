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

import atexit
import collections
import contextlib
import dataclasses
import hmac
import ipaddress
import os
import re
import secrets
import selectors
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
    verdict = _Roll(num_processes, token).hear((find_bind_host(coordinator, token), port), deadline)
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


def _has_ended(line: socket.socket) -> bool:
  """Whether the other side of a connection that does not block is gone; it says no more."""
  try:
    return not line.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _open_listener(address) -> socket.socket:
  host, port = address
  if host == '::':
    with contextlib.suppress(OSError):  # of a machine whose IPv6 is switched off
      return socket.create_server(address, family=socket.AF_INET6, backlog=_MOST_PENDING,
                                  dualstack_ipv6=socket.has_dualstack_ipv6())
    host = ''
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  return socket.create_server((host, port), family=family, backlog=_MOST_PENDING)


@dataclasses.dataclass
class _Peer:
  """A connection that has not yet said who it is."""
  socket: socket.socket
  address: str
  nonce: str
  until: float
  said: bytes = b''


class _Roll:
  """Process 0's side."""

  def __init__(self, num_processes: int, token: str):
    self._count, self._token = num_processes, token
    self._there: dict[int, socket.socket] = {}
    self._strangers = collections.Counter()  # address -> connections of no process of this run
    self._refused: dict[str, None] = {}  # what processes said that cannot be right
    self._selector = selectors.DefaultSelector()

  def hear(self, address, deadline) -> str:
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
    listener.setblocking(False)
    self._selector.register(listener, selectors.EVENT_READ)
    try:
      verdict = self._wait(listener, deadline)
      for peer in self._there.values():
        with contextlib.suppress(OSError):
          peer.sendall(verdict.encode())
      self._tell_strangers()
      if verdict == 'go':
        _keep_lines(list(self._there.values()))
    finally:
      for key in list(self._selector.get_map().values()):
        if key.data:
          key.data.socket.close()
      self._selector.close()
      listener.close()
    return verdict

  def _wait(self, listener, deadline) -> str:
    """'go' once all are there, or what is wrong."""
    while self._list_missing():
      for key, _ in self._selector.select(min(0.5, max(deadline - time.monotonic(), 0.01))):
        try:
          if key.data:
            self._hear(key.data)
          else:
            self._accept(listener)
        except HostError as e:
          return str(e)
      now = time.monotonic()
      for key in list(self._selector.get_map().values()):
        if key.data and now > key.data.until:
          self._turn_away(key.data)
      if now > deadline:
        return self._name_missing()
    return 'go'

  def _accept(self, listener):
    with contextlib.suppress(OSError):
      connection, address = listener.accept()
      peer = _Peer(connection, address[0], secrets.token_hex(16), time.monotonic() + _ANSWER_SECS)
      self._selector.register(connection, selectors.EVENT_READ, peer)
      if len(self._selector.get_map()) > 1 + _MOST_PENDING:  # and the listener
        self._turn_away(peer)
      else:
        connection.settimeout(_ANSWER_SECS)  # 33 bytes, which the kernel takes at once
        connection.sendall(f'{peer.nonce}\n'.encode())

  def _hear(self, peer):
    try:
      part = peer.socket.recv(_LONGEST)
    except OSError:
      part = b''
    peer.said += part
    if part and b'\n' not in peer.said and len(peer.said) < _LONGEST:
      return  # there is more to come
    try:
      number, count, proof = peer.said.split()
      number, count = int(number), int(count)
      # As bytes: of texts it refuses all but ASCII by a TypeError.
      known = hmac.compare_digest(proof, _sign(self._token, peer.nonce, number, count).encode())
    except ValueError:
      known = False
    if known:
      self._welcome(peer, number, count)
    else:
      self._turn_away(peer)

  def _welcome(self, peer, number, count):
    """Raises: HostError for one of this run that was started wrongly."""
    if count == self._count and 0 < number < count and number not in self._there:
      self._selector.unregister(peer.socket)
      peer.socket.setblocking(False)
      self._there[number] = peer.socket
      return
    verdict = (f'process {number} at {peer.address} says it is one of {count}, twice or of another '
               f'run; here are {self._count}; give every process its own --process_id and the same '
               '--num_processes')
    with contextlib.suppress(OSError):
      peer.socket.sendall(verdict.encode())
    self._close(peer)
    if self._token:
      raise HostError(verdict)
    if verdict not in self._refused:  # it may be anyone: the real one can still come
      self._refused[verdict] = None
      _warn(verdict)

  def _turn_away(self, peer):
    self._strangers[peer.address] += 1
    self._close(peer)

  def _close(self, peer):
    self._selector.unregister(peer.socket)
    peer.socket.close()

  def _tell_strangers(self):
    if self._strangers:
      told = ', '.join(f'{n} from {address}' for address, n in self._strangers.items())
      _warn(f'connections to the coordinator that were no process of this run: {told}; left alone')

  def _list_missing(self) -> list[int]:
    """Processes that are not there; one whose connection has ended is so no more."""
    for number in [n for n, line in self._there.items() if _has_ended(line)]:
      self._there.pop(number).close()
    return sorted(set(range(1, self._count)) - set(self._there))

  def _name_missing(self) -> str:
    return '; '.join([
        f'of {self._count} processes, {", ".join(map(str, self._list_missing()))} did not come',
        *self._refused, 'look at their logs, and start all of them again'])


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
