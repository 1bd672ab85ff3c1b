"""`tensorgate run DIR`: a language model in the terminal, which is a pseudo-terminal here, and in pipes.

What the model must say is computed by `tiny_llm.Oracle`.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time

import parrot_llm
import pytest
import tiny_llm
from openai_service import LONG_CONTEXT, WAIT_SECONDS
from tool_service import AFTER, FORMATS

PROMPT, OTHER = "Once upon a time", "Hello"
SYSTEM = "Be brief."
COUNT = 20
GREEDILY = ("--temperature", "0", "--max-tokens", str(COUNT))
# What a terminal would obey: a colour, a bell and a backspace, and a control of one character that erases.
CONTROLS = ("\x1b[31m", "\x07\x08", "\u009b2J")
# What follows an answer on a terminal, and the sign to go on.
RATE = re.compile(r"\n\x1b\[2m(\d+) tokens, [\d.]+ a second\x1b\[0m\n> ")
INTERRUPT, END = b"\x03", b"\x04"


class Repository:
    """A directory of one model, `tiny`, and its oracle."""

    def __init__(self, folder, make=tiny_llm.make, **wishes):
        self.directory, self.model = folder, folder / "tiny"
        self.oracle = make(self.model, **wishes)

    def answer(self, *turns, system=None, count=COUNT, ties="fail"):
        """What the model says after turns of the user, the assistant, the user, ..."""
        messages = [{"role": "system", "content": system}] if system else []
        roles = ("user", "assistant") * len(turns)
        messages += [{"role": role, "content": text} for role, text in zip(roles, turns)]
        prompt = self.oracle.encode(self.oracle.chat_prompt(messages))
        return self.oracle.decode(self.oracle.greedy(prompt, count, stop=self.oracle.ends, ties=ties))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rude(tmp_path_factory):
    """A model that likes to control terminals."""
    return Repository(tmp_path_factory.mktemp("rude"), extras=(" t", "é", *CONTROLS))


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model that goes on for minutes."""
    return Repository(tmp_path_factory.mktemp("talker"), context=LONG_CONTEXT)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A model that says what its prompt dictates, and thinks."""
    wishes = {"template": FORMATS["qwen"].template, "marks": FORMATS["qwen"].marks}
    return Repository(tmp_path_factory.mktemp("thinker"), make=parrot_llm.make, **wishes)


def run(binary, *words, given=b""):
    command = [str(word) for word in (binary, "run", *words)]
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


def answered(ended):
    """What a run wrote that ended well, and without a word on the side."""
    assert (ended.returncode, ended.stderr) == (0, b"")
    return ended.stdout.decode()


# --------------------------------------------------------------------------------------------------------------- pipes


def test_one_question(binary, tiny):
    assert answered(run(binary, tiny.directory, "--prompt", PROMPT, *GREEDILY)) == tiny.answer(PROMPT) + "\n"


@pytest.mark.parametrize("how", ["positional", "flag"])
def test_the_directory_of_the_model_itself(binary, tiny, how):
    words = [tiny.model] if how == "positional" else ["--model-dir", tiny.model]
    assert answered(run(binary, *words, "--prompt", PROMPT, *GREEDILY)) == tiny.answer(PROMPT) + "\n"


@pytest.mark.parametrize("given", [PROMPT, "hé\n\nho"])
def test_a_question_from_standard_input(binary, tiny, given):
    assert answered(run(binary, tiny.directory, *GREEDILY, given=given.encode())) == tiny.answer(given) + "\n"


def test_what_is_said_before_all_else(binary, tiny):
    words = (tiny.directory, f"--system={SYSTEM}", f"--prompt={PROMPT}", *GREEDILY)
    assert answered(run(binary, *words)) == tiny.answer(PROMPT, system=SYSTEM) + "\n"


def test_chance_is_as_the_model_says(binary, tiny):
    """By its generation_config.json, and without a seed."""
    told = {answered(run(binary, tiny.directory, "--prompt", PROMPT, "--max-tokens", "40")) for _ in range(3)}
    assert len(told) == 3


def test_an_answer_that_ends_by_itself(binary, thinker):
    """Thoughts are for people to watch, and not part of what a program reads."""
    text = "<think>\nPerhaps.\n</think>\n\nYes, of course."
    question = parrot_llm.script(thinker.oracle, text, AFTER["qwen"])
    assert answered(run(binary, thinker.directory, "--temperature", "0", "--prompt", question)) == "Yes, of course.\n"


@pytest.mark.parametrize("question", [PROMPT, "colour me"])
def test_pipes_get_every_character(binary, rude, question):
    answer = rude.answer(question, count=48)
    assert any(control in answer for control in CONTROLS)
    words = (rude.directory, "--prompt", question, "--temperature", "0", "--max-tokens", "48")
    assert answered(run(binary, *words)) == answer + "\n"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def others(models, tiny, tmp_path):
    """Directories that hold no language model, or more than one."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(models / "iris", tmp_path / "trees" / "iris")
    for name in ("one", "two"):
        shutil.copytree(tiny.model, tmp_path / "several" / name)
    shutil.copytree(tiny.model, tmp_path / "broken" / "tiny")
    (tmp_path / "broken" / "tiny" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", ["no model"]),
        ("nowhere", ["nowhere"]),
        ("trees", ["iris", "no language model"]),
        ("several", ["several", "one", "two"]),
        ("broken", ["tiny"]),
    ],
)
def test_directories_without_a_model_to_talk_to(binary, others, name, words):
    ended = run(binary, others / name, "--prompt", PROMPT)
    assert (ended.returncode, ended.stdout) == (2, b"")
    (line,) = ended.stderr.decode().splitlines()
    assert line.startswith("tensorgate: ") and not line.rstrip().endswith((";", ":"))
    assert all(word in line for word in words), line


def test_without_a_model_an_example_is_given(binary):
    ended = run(binary)
    assert (ended.returncode, ended.stdout) == (2, b"")
    (line,) = ended.stderr.decode().splitlines()
    assert "no model is named" in line and "`tensorgate run ./models/qwen" in line


def test_one_of_several_is_named_by_its_directory(binary, others, tiny):
    """As the error advises."""
    words = (others / "several" / "two", "--prompt", PROMPT, *GREEDILY)
    assert answered(run(binary, *words)) == tiny.answer(PROMPT) + "\n"


WRONG = {
    "no prompt": (["--prompt"], "--prompt"),
    "nothing asked": (["--prompt", " "], "nothing was asked"),
    "nothing given": ([], "nothing was asked"),
    "no tokens": (["--prompt", PROMPT, "--max-tokens", "0"], "--max-tokens"),
    "some tokens": (["--prompt", PROMPT, "--max-tokens", "some"], "--max-tokens"),
    "too hot": (["--prompt", PROMPT, "--temperature", "9"], "--temperature"),
    "unknown flag": (["--prompt", PROMPT, "--temprature", "0"], "--temprature"),
    "too long": (["--prompt", "a" * 600], "512"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words(binary, tiny, case):
    words, named = WRONG[case]
    ended = run(binary, tiny.directory, *words)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert named in ended.stderr.decode()


def test_help(binary):
    everything = subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=60).stdout
    assert "tensorgate run DIR" in everything
    page = answered(run(binary, "--help"))
    assert all(flag in page for flag in ("--prompt", "--system", "--max-tokens", "--temperature"))


# ------------------------------------------------------------------------------------------------------------ terminal


class Session:
    """A run on a terminal of its own, whose keys are pressed here."""

    def __init__(self, binary, directory, *words):
        self.keys, screen = pty.openpty()
        # What is written comes as it is, and what is typed is not shown; ctrl-c loses nothing that was written before.
        settings = termios.tcgetattr(screen)
        settings[1] &= ~termios.OPOST
        settings[3] = (settings[3] | termios.NOFLSH) & ~termios.ECHO
        termios.tcsetattr(screen, termios.TCSANOW, settings)
        self.child = subprocess.Popen(
            [str(word) for word in (binary, "run", directory, "--temperature", "0", *words)],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(screen)
        self.screen = b""

    def read(self, pattern):
        """All up to what fits the pattern, and what fits."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := re.search(pattern, self.text)):
            assert select.select([self.keys], [], [], max(0, deadline - time.monotonic()))[0], self.text[-500:]
            with contextlib.suppress(OSError):  # Nobody writes any more.
                more = os.read(self.keys, 65536)
                self.screen += more
                continue
            raise AssertionError(f"it ended after {self.text[-500:]!r}")
        before, rest = self.text[: found.start()], self.text[found.end() :]
        self.screen = rest.encode() + self.screen[len(self.text.encode()) :]
        return before, found

    @property
    def text(self):
        """Without a character that is not complete yet."""
        return self.screen.decode("utf-8", "ignore")

    def press(self, keys):
        os.write(self.keys, keys)

    def ask(self, question):
        """What is on the screen of the answer, and the tokens that it tells of."""
        self.press(question.encode() + b"\n")
        shown, rate = self.read(RATE)
        return shown, int(rate[1])

    def ends(self):
        """What is still written, where it ends well."""
        assert self.child.wait(WAIT_SECONDS) == 0
        with contextlib.suppress(OSError):
            while more := os.read(self.keys, 65536):
                self.screen += more
        return self.text


@pytest.fixture
def begin(binary):
    """Begins a session, greets and waits for the sign to go on."""
    sessions = []

    def begin(repository, *words):
        sessions.append(Session(binary, repository.directory, *words))
        greeting, _ = sessions[-1].read("> ")
        assert "/bye" in greeting
        return sessions[-1]

    yield begin
    for each in sessions:
        each.child.kill()
        each.child.wait()
        os.close(each.keys)


def test_a_conversation(begin, tiny):
    """The second question sees the first, its answer, and what was said before; empty lines are nothing."""
    session = begin(tiny, "--max-tokens", str(COUNT), "--system", SYSTEM)
    first = tiny.answer(PROMPT, system=SYSTEM)
    assert session.ask(PROMPT) == (first, COUNT)
    session.press(b"\n  \n")
    session.read("> ")
    session.read("> ")
    assert session.ask(f"  {OTHER} ") == (tiny.answer(PROMPT, first, OTHER, system=SYSTEM), COUNT)
    session.press(b"/bye\n")
    assert session.ends().strip() == ""


@pytest.mark.parametrize("key", [END, INTERRUPT], ids=["ctrl-d", "ctrl-c"])
def test_keys_that_end_it(begin, tiny, key):
    session = begin(tiny, "--max-tokens", "4")
    session.ask(PROMPT)
    session.press(key)
    assert session.ends().strip() == ""


def is_begun(said, expected):
    """Is what was said what was to be said, as far as both go?"""
    return bool(said) and (said.startswith(expected) or expected.startswith(said))


def test_an_answer_is_cut_short(begin, talker):
    """The session goes on, and what was said stays said."""
    session = begin(talker)
    session.press(PROMPT.encode() + b"\n")
    begun, _ = session.read(r"(?<=.{10})")
    session.press(INTERRUPT)
    rest, rate = session.read(RATE)
    said = begun + rest
    assert is_begun(said, talker.answer(PROMPT, ties="end"))
    assert int(rate[1]) < 5000, "it stopped soon"
    session.press(OTHER.encode() + b"\n")
    begun, _ = session.read(f"(?<=(?s:.{{{COUNT}}}))")
    assert is_begun(begun, talker.answer(PROMPT, said, OTHER, ties="end"))
    session.press(INTERRUPT)
    session.read(RATE)
    # Not only when it waits for a token.
    for _ in range(8):
        session.press(OTHER.encode() + b"\n")
        session.read(r"(?<=.{10})")
        session.press(INTERRUPT)
        session.read(RATE)
    session.press(b"/bye\n")
    assert session.ends().strip() == ""


def test_what_failed_was_never_asked(begin, tiny):
    session = begin(tiny, "--max-tokens", str(COUNT))
    session.press(b"a" * 600 + b"\n")
    reason, _ = session.read("\n> ")
    assert "512" in reason
    assert session.ask(PROMPT) == (tiny.answer(PROMPT), COUNT)


def test_a_terminal_is_not_controlled(begin, rude):
    session = begin(rude, "--max-tokens", "48")
    first = rude.answer(PROMPT, count=48)
    plain = str.maketrans("", "", "\x1b\x07\x08\u009b")
    assert session.ask(PROMPT) == (first.translate(plain), 48)
    assert first != first.translate(plain)
    # The model sees what it said, all of it.
    second = rude.answer(PROMPT, first, "colour me", count=48)
    assert session.ask("colour me") == (second.translate(plain), 48)


def test_thoughts_are_shown_dimly(begin, thinker):
    session = begin(thinker)
    text = "<think>Perhaps.</think>Yes."
    shown, _ = session.ask(parrot_llm.script(thinker.oracle, text, AFTER["qwen"]))
    assert shown == "\x1b[2mPerhaps.\x1b[0m\nYes."
    # Thoughts are no part of what was said.
    again = parrot_llm.script(thinker.oracle, "No.", AFTER["qwen"])
    assert session.ask(again)[0] == "No."
