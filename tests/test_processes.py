"""Training in several processes for real: equal to one, clear when one dies, continued from its checkpoint."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).parent / "process_worker.py"
STEPS = 4


def start(processes, folder, die_after=None):
    """The worker processes; the last one dies after that step."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    started = []
    for k in range(processes):
        argv = [sys.executable, str(WORKER), coordinator, str(processes), str(k), str(folder), str(STEPS)]
        argv += [str(die_after)] if die_after and k == processes - 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(argv, env=env, cwd=WORKER.parent.parent, **pipes))
    return started


def finish(started, seconds=120):
    """The exit code, output and errors of each, within a time."""
    try:
        outputs = [p.communicate(timeout=seconds) for p in started]
        return [(p.returncode, *output) for p, output in zip(started, outputs, strict=True)]
    finally:
        for p in started:
            p.kill()


def train(processes, folder):
    """What process 0 prints."""
    done = finish(start(processes, folder))
    assert [code for code, _, _ in done] == [0] * processes, done
    return json.loads(done[0][1].splitlines()[-1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(1, tmp_path_factory.mktemp("alone"))


def assert_same(got, expected, first=0):
    assert got["first"] == first
    np.testing.assert_allclose(got["losses"], expected["losses"][first:], rtol=1e-12)
    np.testing.assert_allclose(got["sums"], expected["sums"], rtol=1e-11, atol=1e-12)


def test_training_makes_the_loss_fall(alone):
    assert np.all(np.diff(alone["losses"]) < 0)


def test_four_processes_train_as_one(alone, tmp_path):
    assert_same(train(4, tmp_path), alone)


def test_a_dead_process_ends_the_other_clearly_and_the_checkpoint_goes_on(alone, tmp_path):
    done = finish(start(2, tmp_path, die_after=2), seconds=60)
    assert done[1][0] == -signal.SIGKILL
    code, _, errors = done[0]
    assert code != 0
    assert "another task died" in errors or "Connection closed by peer" in errors or "Connection reset" in errors
    assert_same(train(2, tmp_path), alone, first=2)
