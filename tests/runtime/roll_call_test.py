"""The roll call: who is missing is named, and no stranger's connection counts or ends it."""

import contextlib
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from rim_jax.errors import HostError
from rim_jax.runtime import roll_call

ROOT = pathlib.Path(__file__).parents[2]


def find_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def call_roll(count, present, timeout=20.0, claims=None, tokens=None, stranger=None):
  """What each present process is told: its id -> '' or the error.

  `stranger` gets the port before any process but the first comes.
  """
  port, told = find_port(), {}
  address = f'127.0.0.1:{port}'

  def join(me):
    try:
      roll_call.call_roll(address, (claims or {}).get(me, count), me, timeout,
                          (tokens or {}).get(me, ''))
      told[me] = ''
    except HostError as e:
      told[me] = str(e)
  threads = [threading.Thread(target=join, args=(i,)) for i in present]
  for i, thread in enumerate(threads):
    thread.start()
    if stranger and not i:
      stranger(port)
  for thread in threads:
    thread.join(timeout + 20)
  return told


def test_all_that_come_go(capfd, caplog):
  tokens = dict.fromkeys(range(4), 'secret')
  assert call_roll(4, [3, 0, 2, 1], tokens=tokens) == dict.fromkeys(range(4), '')
  assert capfd.readouterr().err == '' and not caplog.records


def test_everyone_who_came_hears_who_did_not():
  told = call_roll(5, [0, 1, 3], timeout=1.5)
  assert set(told) == {0, 1, 3}
  for line in told.values():
    assert 'of 5 processes, 2, 4 did not come' in line


@pytest.mark.parametrize('token', [pytest.param('', marks=pytest.mark.slow), 'secret'])
def test_a_process_of_another_run_is_refused(token):
  told = call_roll(3, [0, 1, 2], timeout=3, claims={2: 4}, tokens=dict.fromkeys(range(3), token))
  assert 'process 2 at 127.0.0.1 says it is one of 4' in told[0]
  assert 'says it is one of 4' in told[2]


# ---- Strangers ----


def connect(port):
  for _ in range(200):  # process 0 may not listen yet
    with contextlib.suppress(OSError):
      return socket.create_connection(('127.0.0.1', port), timeout=5)
    time.sleep(0.02)
  raise AssertionError('nobody listens')


@pytest.mark.parametrize('patience', [0.5, 1000.0])
def test_a_silent_connection_ends_nothing(patience, monkeypatch):
  """Whether it is still waited for or already given up when the others come."""
  monkeypatch.setattr(roll_call, '_ANSWER_SECS', patience)
  kept = []

  def stay(port):
    kept.append(connect(port))
    time.sleep(1.5 if patience < 1 else 0)
  told = call_roll(2, [0, 1], stranger=stay)
  assert told == {0: '', 1: ''}
  kept[0].close()


@pytest.mark.parametrize('line', [
    b'1 2\n', b'5 3\n', b'-7 2\n', b'0 2\n', b'GET / HTTP/1.1\r\n\r\n', b'\xff' * 300,
    b'1 2 ' + b'0' * 64 + b'\n', '1 2 é\n'.encode(), b''])
@pytest.mark.parametrize('token', ['', 'secret'])
def test_a_stranger_takes_no_place_and_ends_nothing(line, token, capfd):
  def intrude(port):
    stranger = connect(port)
    stranger.recv(64)
    with contextlib.suppress(OSError):  # it may be ended before all is sent
      stranger.sendall(line)
      stranger.shutdown(socket.SHUT_WR)
      assert stranger.recv(1024) == b''  # told nothing
  told = call_roll(2, [0, 1], tokens=dict.fromkeys(range(2), token), stranger=intrude)
  assert told == {0: '', 1: ''}
  assert 'no process of this run: 1 from 127.0.0.1; left alone' in capfd.readouterr().err


def begin_claim(port, number, count, token=''):
  """The connection of one who knows the protocol, and has said who it is."""
  stranger = connect(port)
  nonce = stranger.recv(64).decode().strip()
  proof = roll_call._sign(token, nonce, number, count)
  stranger.sendall(f'{number} {count} {proof}\n'.encode())
  return stranger


def claim(port, number, count, token=''):
  return begin_claim(port, number, count, token).recv(1024).decode()


def test_who_knows_the_protocol_but_not_the_token_takes_no_place():
  told = call_roll(2, [0, 1], tokens={0: 'secret', 1: 'secret'},
                   stranger=lambda port: claim(port, 1, 2))
  assert told == {0: '', 1: ''}


@pytest.mark.parametrize('number, count', [(5, 3), (-7, 2), (0, 2), (2, 2)])
def test_without_a_token_a_false_claim_is_refused_alone(number, count, capfd):
  refused = []
  told = call_roll(2, [0, 1], stranger=lambda port: refused.append(claim(port, number, count)))
  assert told == {0: '', 1: ''} and f'process {number} at 127.0.0.1 says it is one' in refused[0]
  err = capfd.readouterr().err
  assert 'have no RIM_JAX_TOKEN in common' in err and f'warning: process {number} at' in err


@pytest.mark.parametrize('token', ['', 'secret'])
def test_one_that_comes_again_takes_the_place_that_it_had(token):
  """Its connection broke, or it was started again, before the last had come."""
  def come_and_go(port):
    for _ in range(2):
      line = begin_claim(port, 1, 3, token)
      time.sleep(0.3)  # it has been heard
      line.close()
  told = call_roll(3, [0, 1, 2], tokens=dict.fromkeys(range(3), token), stranger=come_and_go)
  assert told == {0: '', 1: '', 2: ''}


def test_one_that_came_and_went_is_missing():
  told = call_roll(3, [0, 2], timeout=2, stranger=lambda port: begin_claim(port, 1, 3).close())
  assert 'of 3 processes, 1 did not come' in told[0] == told[2]


# ---- The other side: what may listen at the coordinator's address ----


def report_in(answer, timeout):
  """What process 1 is told where `answer` takes each connection in process 0's place."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    def serve():
      with contextlib.suppress(OSError):
        while True:
          answer(server.accept()[0])
    threading.Thread(target=serve, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(HostError) as e:
      roll_call.call_roll(f'127.0.0.1:{server.getsockname()[1]}', 2, 1, timeout, 'secret')
    assert time.monotonic() - began < timeout + 6
  return str(e.value)


def say(text):
  def answer(line):
    line.sendall(text)
    line.close()
  return answer


def reset(line):
  """Ends a connection as one does that has not read what it was told."""
  line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
  line.close()


@pytest.mark.parametrize('answer, told', [
    (reset, 'it ends the connection: is it of another run'),
    (say(b'SSH-2.0-OpenSSH_9\r\n'), "another program listens there: it says 'SSH-2.0-OpenSSH_9'"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (socket.socket.close, 'it ends the connection: is it of another run'),
        (say(b'\xff' * 300), 'another program listens there'),
        (say(b'0' * 32 + b'\n'), 'it ends the connection')))])
def test_what_is_no_process_0_is_named_at_the_deadline(answer, told):
  line = report_in(answer, 0.7)
  assert told in line and 'process 1 cannot reach process 0' in line and line.isprintable()


def test_a_silent_listener_is_no_process_0(monkeypatch):
  monkeypatch.setattr(roll_call, '_ANSWER_SECS', 0.3)
  kept = []
  line = report_in(kept.append, 1.0)  # it accepts, and says nothing
  assert 'cannot reach process 0 (timed out)' in line


def test_the_verdict_of_process_0_is_handed_on():
  def answer(line):
    line.sendall(b'0' * 32 + b'\n')
    line.recv(200)
    line.sendall(b'of 3 processes, 2 did not come')
  assert report_in(answer, 20).endswith(': of 3 processes, 2 did not come')


def test_a_process_0_that_comes_late_or_breaks_off_is_asked_again():
  """A first connection that breaks is no end: the second is heard."""
  seen = []

  def answer(line):
    seen.append(line)
    line.sendall(b'0' * 32 + b'\n')
    if len(seen) > 1:
      line.recv(200)
      line.sendall(b'heard')
    line.close()
  assert report_in(answer, 20).endswith(': heard') and len(seen) == 2


def test_a_process_with_another_token_does_not_come():
  told = call_roll(2, [0, 1], timeout=1.5, tokens={0: 'a', 1: 'b'})
  assert 'of 2 processes, 1 did not come' in told[0]
  assert 'has it another RIM_JAX_TOKEN?' in told[1]


@pytest.mark.parametrize('coordinator, token, host', [
    ('127.0.0.1:80', '', '127.0.0.1'),
    ('127.0.0.1:80', 'secret', '127.0.0.1'),  # launch/local_hosts.py
    ('[::1]:80', '', '::1'),
    ('192.0.2.7:80', '', '192.0.2.7'),
    ('192.0.2.7:80', 'secret', ''),  # strangers are refused, so the network may be any
    ('[2001:db8::7]:80', '', '2001:db8::7'),
    ('[2001:db8::7]:80', 'secret', '::'),  # '' would be IPv4's addresses alone
])
def test_it_listens_where_told(coordinator, token, host):
  assert roll_call.find_bind_host(coordinator, token) == host


@pytest.mark.parametrize('has_ipv6', [True, False])
def test_all_addresses_are_those_of_both_kinds(has_ipv6, monkeypatch):
  """Where the others come by IPv4 after all, and where the machine has nothing else."""
  create = socket.create_server

  def refuse_ipv6(address, *, family, **settings):
    if family == socket.AF_INET6 and not has_ipv6:
      raise OSError('Cannot assign requested address')
    return create(address, family=family, **settings)
  port_of = find_port
  monkeypatch.setattr(roll_call, 'find_bind_host', lambda *args: '::')
  port = port_of()
  monkeypatch.setitem(globals(), 'find_port', lambda: port)
  monkeypatch.setattr(socket, 'create_server', refuse_ipv6)
  assert call_roll(2, [0, 1], tokens={0: 'secret', 1: 'secret'}) == {0: '', 1: ''}


def test_a_host_s_own_name_may_lead_to_loopback(monkeypatch):
  """As on Debian: the others come by another address."""
  monkeypatch.setattr(socket, 'getaddrinfo',
                      lambda *args, **kwargs: [(0, 0, 0, '', ('127.0.1.1', 0))])
  assert roll_call.find_bind_host('node7:80', '') == ''


def test_without_a_first_process_the_others_say_so():
  told = call_roll(2, [1], timeout=1)
  assert 'process 1 cannot reach process 0' in told[1] and 'is this its address' in told[1]


@pytest.mark.parametrize('killed', [True, False])
def test_the_others_hear_at_once_that_process_0_is_gone(killed):
  """It is killed; or it ends in order, and the others may go on to theirs."""
  with socket.create_server(('', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
  code = ('import sys, time; from rim_jax.runtime import roll_call; me = int(sys.argv[2])\n'
          'roll_call.call_roll(sys.argv[1], 2, me, 60); print("met", flush=True)\n'
          'sys.stdin.readline(); time.sleep(me)')
  first, second = [subprocess.Popen(
      [sys.executable, '-c', code, address, str(me)], cwd=ROOT, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for me in range(2)]
  assert first.stdout.readline() == second.stdout.readline() == 'met\n'
  if killed:
    first.kill()
  else:
    first.communicate('\n', timeout=300)
  began = time.monotonic()
  _, told = second.communicate(None if killed else '\n', timeout=300)
  if killed:
    assert second.returncode == roll_call.EXIT_STALLED and 'process 0 is gone' in told
    assert time.monotonic() - began < 20
  else:
    assert second.returncode == 0 and told == ''


def test_a_port_in_use_is_told():
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(HostError, match=f':{port}: cannot listen there'):
      roll_call.call_roll(f'127.0.0.1:{port}', 2, 0, 1)
