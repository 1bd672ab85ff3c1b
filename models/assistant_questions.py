"""Makes up questions about this server, the one right answer to each, and conversations, for train_assistant.py.

What is said stands in assistant/talk.txt, assistant_words.py and assistant/flags.md (docs/flags.md of the day of the
training); here it is only put together. No question is understood here: that is for the model to learn.
"""

import math
import random
import re
import zlib
from pathlib import Path

import assistant_words as words

HERE = Path(__file__).resolve().parent
TALK = HERE / "assistant" / "talk.txt"
EXAM = HERE / "assistant" / "exam.txt"
FLAGS = HERE / "assistant" / "flags.md"


def patterns(text):
    """The patterns that a text holds."""
    return " ".join(text.split()).split(" / ")


def expand(pattern, rng):
    """One of the texts that a pattern stands for."""
    while "[" in pattern:
        pattern = re.sub(r"\[([^\[\]]*)\]", lambda found: rng.choice(found[1].split("|")), pattern)
    return " ".join(pattern.split())


def framed(pattern):
    """The patterns that one of a fact's stands for: a subject or a status can be asked about in several ways."""
    frames = {"~": patterns(words.SUBJECT_FRAMES), "#": patterns(words.STATUS_FRAMES)}.get(pattern[0])
    if not frames:
        return [pattern]
    among = patterns(words.AMONG_WORDS) * (len(frames) // 2)
    return [frame.replace("%s", pattern[1:]) for frame in frames + among]


def text_of(file):
    """What a file holds after the comment that it begins with."""
    return re.sub(r"\A(#.*\n)+", "", file.read_text("utf-8")).strip()


def facts():
    """assistant/talk.txt as name -> (answer, patterns, each in all its frames)."""
    found = {}
    for paragraph in text_of(TALK).split("\n\n"):
        answer, asked = re.fullmatch(r"((?:.*\n)(?:> .*\n)*)((?:.*\n?)*)", paragraph).groups()
        name, answer = answer.replace("\n> ", " ").strip().split(" > ", 1)
        found[name] = answer, [framed(pattern) for pattern in patterns(asked)]
    return found


def flags():
    """What assistant/flags.md says: name -> {meaning, default, variable}, and names that other servers use -> answer."""
    ours, theirs = FLAGS.read_text("utf-8").split("# Other servers' command lines")
    found = {}
    row = r"^\| `--([\w-]+) (\w+)`[ *]*\| *(.*?) *\| *(.*?) *\| *(.*?) *\|$"
    for name, value, default, variables, meaning in re.findall(row, ours, re.M):
        default, meaning = default.strip("`"), meaning.replace("`", "")
        found[name] = {
            "meaning": f"--{name} {value}: {meaning}" + (f" The default is {default}." if default else ""),
            "default": f"The default of --{name} is {default}." if default else f"--{name} has no default.",
            "variable": f"The variable of --{name} is {' or '.join(re.findall('[A-Z_]+', variables))}.",
        }
    others = {
        name: f"{name} is another server's flag; here it is {here}."
        for name, here in re.findall(r"^\| `(--[\w-]+)` \| `(--[\w-]+)` \|$", theirs, re.M)
        if name[2:] not in found
    }
    return found, others


class Asker:
    """Asks, and knows the answers."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.facts = facts()
        self.flags, self.others = flags()
        # What can be asked in many ways is asked more often. A frame is not a way of its own.
        self.weights = [math.sqrt(len(asked)) for _, asked in self.facts.values()]
        self.words = {kind: text.split() for kind, text in words.OFF_WORDS.items()}
        self.off_frames = patterns(words.OFF_FRAMES)
        self.flag_frames = {aspect: patterns(text) for aspect, text in words.FLAG_FRAMES.items()}
        self.later = {aspect: patterns(text) for aspect, text in words.LATER.items()}
        self.wanted = {flag: patterns(text) for flag, text in words.WANTED.items()}
        self.wanted_frames = patterns(words.WANTED_FRAMES)
        self.wanted_frames += patterns(words.AMONG_WORDS) * (len(self.wanted_frames) // 4)
        self.rephrased = [
            (re.compile(rf"(?<![\w/.'-]){phrase}(?![\w/.'-])"), patterns(others))
            for phrase, others in words.REPHRASED.items()
        ]
        self.pieces = sorted({piece for name in self.flags for piece in name.split("-")})

    def ask(self):
        """(what it is about, question, answer, the flag that was named)."""
        kind = self.rng.choices(list(words.SHARES), words.SHARES.values())[0]
        if kind == "fact":
            name = self.rng.choices(list(self.facts), self.weights)[0]
            answer, asked = self.facts[name]
            return name, self.said(self.rng.choice(self.rng.choice(asked))), answer, None
        if kind == "other":
            name = self.rng.choice(list(self.others))
            return kind, self.named(name, "meaning"), self.others[name], None
        if kind == "none":
            return kind, self.named(self.no_flag(), self.rng.choice(list(self.flag_frames))), words.NO_FLAG, None
        if kind == "off":
            return kind, self.off_subject(), words.OFF_SUBJECT, None
        flag = self.rng.choice(list(self.flags))
        if kind == "meaning" and flag in self.wanted and self.rng.random() < 0.5:
            frame = self.rng.choice(self.wanted_frames)
            question = self.said(frame.replace("%s", self.rng.choice(self.wanted[flag])))
        else:
            question = self.named(self.spelt(flag), kind)
        return f"{kind} {flag}", question, self.flags[flag][kind], flag

    def ask_on(self, flag):
        """The next question of a conversation in which `flag` was named."""
        aspect = self.rng.choice(["meaning", "default", "default", "variable", "another"])
        if aspect == "another":
            aspect, flag = "meaning", self.rng.choice(list(self.flags))
            question = self.rng.choice(patterns(words.NAMED_LATER)).replace("%s", self.spelt(flag))
        else:
            question = self.rng.choice(self.later[aspect])
        return f"later {aspect} {flag}", expand(question, self.rng), self.flags[flag][aspect], flag

    def named(self, spelt, aspect):
        """A question about a flag."""
        return self.said(self.rng.choice(self.flag_frames[aspect]).replace("%s", spelt))

    def spelt(self, flag):
        """How people write a flag."""
        forms = [f"--{flag}"] * 6 + [f"`--{flag}`", f"--{flag.replace('-', '_')}"]
        if "-" in flag:
            forms += [flag, flag, flag.replace("-", "_")]
        if flag.count("-") > 1:
            forms.append(flag.replace("-", " "))
        return self.rng.choice(forms)

    def made_up(self):
        """A word that is none."""
        choice = self.rng.choice
        syllables = [choice("bcdfghjklmnprstvwz") + choice("aeiou") + choice(["", "", *"lmnrst"]) for _ in range(4)]
        return "".join(syllables[: self.rng.randint(1, 4)])

    def no_flag(self):
        """A flag that there is not."""
        pieces = self.pieces * 3 + self.words["thing"] + self.words["adjective"]
        while True:
            length = self.rng.choice([1, 2, 2, 3, 3])
            parts = [self.made_up() if self.rng.random() < 0.2 else self.rng.choice(pieces) for _ in range(length)]
            name = "-".join(parts)
            if name not in self.flags and f"--{name}" not in self.others:
                return f"--{name}"

    def off_subject(self):
        """A question about anything else."""

        def word(found):
            kind = found[1]
            if kind == "number":
                return str(self.rng.randint(1, 10 ** self.rng.randint(1, 4)))
            if kind == "word":
                kind = self.rng.choice(list(self.words))
            return self.made_up() if self.rng.random() < 0.1 else self.rng.choice(self.words[kind])

        return self.said(re.sub(r"\{(\w+)\}", word, self.rng.choice(self.off_frames)))

    def said(self, pattern):
        """A text of a pattern, or one that says the same in other words."""
        rng = self.rng
        question = expand(pattern, rng)
        for phrase, others in self.rephrased:
            if rng.random() < 0.25:
                question = phrase.sub(lambda _: rng.choice(others), question, count=1)
        parts = question.split(" ")
        if len(parts) > 3 and rng.random() < 0.1:
            parts.insert(rng.randrange(1, len(parts)), rng.choice(words.FILLERS))
        if len(parts) > 4 and rng.random() < 0.15:
            parts.pop(rng.choice([i for i, part in enumerate(parts) if part in words.SMALL] or [0]))
        if len(parts) > 2 and rng.random() < 0.1:
            parts.append(rng.choice(words.LAST))
        return " ".join(parts)

    def typed(self, question, carefully=False):
        """The same question as different people type it; `carefully`: without slips, and only the question."""
        rng = self.rng
        if rng.random() < 0.5:
            names = r"(?<![\w/.-])(" + "|".join(words.NAMES) + r")(?![\w/-])"
            question = re.sub(names, lambda found: words.NAMES[found[1]], question)
        if not carefully:
            question = slip(question, rng) if rng.random() < 0.25 else question
            question = rng.choice(words.BEFORE) + question if rng.random() < 0.25 else question
        if rng.random() < 0.5:
            question = question[:1].upper() + question[1:]
        return question + ("?" if carefully else rng.choice(words.AFTER))


def slip(text, rng):
    """A slip in one of the longer words."""
    parts = text.split(" ")
    longer = [i for i, part in enumerate(parts) if len(part) > 3 and part.isalpha()]
    if longer:
        i = rng.choice(longer)
        part, at = parts[i], rng.randrange(1, len(parts[i]) - 1)
        before, letter, after = part[:at], part[at], part[at + 1 :]
        other = rng.choice("abcdefghijklmnopqrstuvwxyz")
        swapped = after[0] + letter + after[1:]
        parts[i] = before + rng.choice([after, letter * 2 + after, swapped, other + after])
    return " ".join(parts)


def plain(question):
    """A question as it is compared with others."""
    return question.lower().rstrip("?!")


EXAMINED = {plain(line.rsplit(" = ", 1)[0]) for line in text_of(EXAM).splitlines()}
EXCHANGED = {plain(question) for exchange in words.EXCHANGES for question in exchange}


def held_out(question):
    """Is it kept from training, however it is typed? The exam is; of the rest one in ten, which its text decides."""
    question = plain(question)
    return question in EXAMINED or question not in EXCHANGED and zlib.crc32(question.encode()) % 10 == 0


def conversation(asker):
    """Messages to train on."""
    messages, flag = [], None
    if asker.rng.random() < 0.15:
        messages.append({"role": "system", "content": asker.rng.choice(words.SYSTEM)})
    for _ in range(asker.rng.choice(words.LENGTHS)):
        # What can only be asked later is asked in few words: there it is the conversation that is new each time.
        on = flag is not None and asker.rng.random() < 0.6
        while True:
            about, question, answer, named = asker.ask_on(flag) if on else asker.ask()
            if on or not held_out(question) and not (flag and about in words.ASK_BACK):
                break
        flag = named
        messages.append({"role": "user", "content": asker.typed(question)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def unseen(seed, count):
    """Different questions that are held out: (what it is about, question, answer)."""
    asker, found = Asker(seed), {}
    while len(found) < count:
        about, question, answer, _ = asker.ask()
        if held_out(question):
            found[question.lower()] = about, question, answer
    return asker, list(found.values())


def exam():
    """The questions of assistant/exam.txt, with the answers that are right."""
    known, (known_flags, _) = facts(), flags()
    for line in text_of(EXAM).splitlines():
        question, about = line.rsplit(" = ", 1)
        aspect, _, flag = about.partition(" ")
        if flag:
            answer = known_flags[flag]["meaning" if aspect == "flag" else aspect]
        else:
            answer = {"none": words.NO_FLAG, "off": words.OFF_SUBJECT}.get(about) or known[about][0]
        yield about, question, answer
