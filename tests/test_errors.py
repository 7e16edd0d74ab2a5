"""Errors carry the exit code, and say all that is known in their text."""

import pickle

from tlsproxy.errors import CertificateError, ConfigError, NotRunning, Problem, StoreError, TlsproxyError


def test_exit_codes() -> None:
    assert [kind.exit_code for kind in (TlsproxyError, CertificateError, StoreError)] == [1, 1, 1]
    assert (ConfigError.exit_code, NotRunning.exit_code) == (2, 3)


def test_a_problem_is_one_line() -> None:
    assert str(Problem("a.toml:3", "server.drain", "is wrong")) == "a.toml:3: server.drain: is wrong"
    assert str(Problem("a.toml:3", "", "is no TOML")) == "a.toml:3: is no TOML"


def test_a_configuration_error_shows_all_problems() -> None:
    error = ConfigError(Problem("x", str(number), "y") for number in range(2))
    assert str(error) == "x: 0: y\nx: 1: y"
    assert len(error.problems) == 2
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
