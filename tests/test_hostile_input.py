"""Command lines that no one would write on purpose: told in one sentence, or accepted.

The strings go through the whole of `lvb.train` up to the first computation: flags,
config, workdir, data, networks and steps, all of which are traced and none computed.
"""

import collections
import contextlib
import io
import os
import pathlib
import resource
import shutil
import signal
import sys
from typing import NamedTuple

import hostile_configs
import jax
import numpy as np
import pytest
import runs
from absl import flags

import lvb
from lvb import inputs, train
from lvb.data import decode
from lvb.training import compilation, process

SEED = 20260
SECONDS = 300  # For one string; networks trace in a few, longer on a busy machine.
MEMORY = 6 << 30  # Bytes of addresses that the strings may claim, in all.
CANARY = "canary"
# Tracing takes most of the time: each leaf thrice at most, so many of a network's own
# leaves, and of all others, which need only a toy network.
TRACES = {True: 45, False: 100}
DEEPEST = 8  # Blocks; a network of 64 traces in a minute, which is slow and no hang.
PREFIX = "lvb.train: error: "


class Reached(BaseException):
    """The run would begin to compute."""


class OutOfTime(BaseException):
    """A string took longer than `SECONDS`."""


class Outcome(NamedTuple):
    """What became of a string: an exit code, or None where it was accepted."""

    attacked: str
    words: list
    code: int | None
    said: str


@contextlib.contextmanager
def guarded():
    """Limits the time of what is inside."""

    def stop(number, frame):
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


class Attack:
    """Gives strings to `lvb.train`, in this process."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self._traced = collections.Counter()
        self._real, self._leaf = lvb.create_model, ""
        self._assemble_really = train.assembly.assemble
        monkeypatch.setattr(lvb, "create_model", self._create_model)
        monkeypatch.setattr(train, "_first_state", self._begin)
        monkeypatch.setattr(train.assembly, "assemble", self._assemble)
        monkeypatch.setattr(compilation, "enable_cache", lambda folder: None)

    @property
    def traced(self):
        """How many networks were traced, whole or up to a refusal."""
        return self._traced[True] + self._traced[False]

    def run(self, attacked, words):
        """Returns the outcome of one command line."""
        self._leaf = attacked
        argv = ["lvb.train", *words, "--workdir=run"]
        self._monkeypatch.setattr(sys, "argv", argv)
        stderr, code = io.StringIO(), None
        with (
            guarded(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(stderr),
            contextlib.suppress(Reached),
        ):
            code = process.run(lambda: train._main(argv), name="lvb.train")
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        shutil.rmtree("run", ignore_errors=True)
        return Outcome(attacked, words, code, stderr.getvalue())

    def _create_model(self, name, *, num_classes, drop_path_rate=0.0, **options):
        """The network where its own leaves are attacked, else a toy in its place."""
        options["drop_path_rate"] = drop_path_rate
        model = self._real(name, num_classes=num_classes, **options)
        if self._leaf.startswith("model."):
            return model
        return runs.MicroNet(num_classes, rate=drop_path_rate)

    def _assemble(self, config, **arguments):
        """Traces, unless such a string has been traced before."""
        data = inputs.open_data(config, data_dir=None)
        picture, rng = decode.decode_image(data.train[0].image), np.random.default_rng()
        transforms = data.train_transform, data.eval_transform
        shapes = {transform(picture, rng).shape for transform in transforms}
        assert shapes == {(config.data.image_size,) * 2 + (config.data.channels,)}
        own = self._leaf.startswith("model.")
        deep = own and sum(config.model.get("depths", (0,))) > DEEPEST
        spent = self._traced[own] >= TRACES[own] or self._traced[self._leaf] >= 3
        if deep or spent:
            raise Reached
        self._traced.update([own, self._leaf])
        return self._assemble_really(config, **arguments)

    def _begin(self, config, run, *unused, seed_key):
        if not self._leaf.startswith("model."):
            jax.eval_shape(
                run.train_step, run.state, run.train_batch, seed_key, run.constants
            )
        raise Reached


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """An attack from a folder of its own, with little memory to claim."""
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    claim = used * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (claim, limits[1]))
    yield Attack(monkeypatch)
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def generator(tmp_path, repo_root):
    config = tmp_path / "tiny.py"
    config.write_text(hostile_configs.CONFIG)
    return hostile_configs.Generator(
        seed=SEED, config=config, configs=repo_root / "configs", canary=CANARY
    )


def problem(outcome):
    """What is wrong with how a string ended; "" where all is well."""
    if outcome.code is None:
        return ""
    lines = outcome.said.splitlines()
    if outcome.code != process.FAILED or len(lines) != 1:
        return f"exit code {outcome.code}, {len(lines)} lines"
    told = lines[0].removeprefix(PREFIX)
    if told == lines[0] or len(told) < 20 or len(told) > 4100 or "Traceback" in told:
        return "no sentence"
    return "" if told.isprintable() else "control characters"


def bombard(attack, generator, number):
    """Runs so many strings; returns those that ended badly, and the counts."""
    counts, bad = collections.Counter(), []
    for _ in range(number):
        attacked, words = generator.draw()
        try:
            outcome = attack.run(attacked, words)
        except BaseException as error:
            bad.append((words, repr(error)))
            continue
        counts["accepted" if outcome.code is None else "refused"] += 1
        if wrong := problem(outcome):
            bad.append((words, wrong, outcome.said[:300]))
    assert not pathlib.Path(CANARY).exists()
    return bad, counts


def test_80_strings_are_accepted_or_told(attack, generator):
    bad, counts = bombard(attack, generator, 80)
    assert bad == []
    assert counts["refused"] > 40
    assert counts["accepted"] > 4


@pytest.mark.slow
def test_2000_strings_are_accepted_or_told(attack, generator):
    bad, counts = bombard(attack, generator, 2000)
    print(dict(counts), "of them traced:", attack.traced)
    assert bad == []
    assert attack.traced > 70
    assert counts["refused"] > 1000
    assert counts["accepted"] > 100


# What comes -> what the sentence says of it.
TOLD = {
    "--config.data.mean=...": "holds something else than numbers; write for example",
    "--config.model.dims=(None, 1, 1, 1)": "holds something else than whole numbers",
    "--config.optimizer.no_decay=(1, 2)": "holds something else than names",
    "--config.model.depths=(0, 1, 1, 1000000)": "is out of range; use 0 to 512",
    "--config.data.area=(0.9, 0.1)": "area=(0.9, 0.1) is no range",
    "--config.data.mean=" + "-" * 9000 + "1": "a value is nested too deeply",
    "--config.seed=" + "9" * 5000: "Exceeds the limit (4300 digits)",
    "--config.data.augment=rand-m9-n99999999": "is more than 100",
    "--config.log_every=a\nb": "a\\nb",
    "extra": "the argument 'extra' belongs to no flag",
    "--config.model.depths=(1, 1)": "must name 4 stages",
}


@pytest.mark.parametrize("word", TOLD, ids=lambda word: word[:40])
def test_a_slip_is_told_with_what_fits(attack, generator, word):
    outcome = attack.run("model.", [generator.base("lsnet"), word])
    assert problem(outcome) == ""
    assert TOLD[word] in outcome.said, outcome.said


def test_code_in_arguments_is_text(attack, generator):
    """Each text would make the canary if anything evaluated it."""
    for text in hostile_configs.code(CANARY):
        for name in (
            "seed",
            "data.mean",
            "data.source",
            "model.dims",
            "init.checkpoint",
        ):
            attack.run("code", [generator.base("lsnet"), f"--config.{name}={text}"])
        attack.run("code", [f"{generator.base('lsnet')},res={text}"])
        attack.run("code", [f"--config={text}"])
    assert not pathlib.Path(CANARY).exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_config(arg=''):\n    return 1 +\n", "SyntaxError: invalid syntax"),
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named"),
        ("def get_config(arg=''):\n    return undefined\n", "NameError: name"),
        ("def get_config(arg=''):\n    pass\n", "AttributeError: 'NoneType'"),
    ],
)
def test_a_config_file_that_fails_is_told(attack, tmp_path, body, message):
    (tmp_path / "mine.py").write_text(body)
    outcome = attack.run("file", [f"--config={tmp_path}/mine.py"])
    assert problem(outcome) == ""
    assert f"mine.py cannot be used: {message}" in outcome.said
