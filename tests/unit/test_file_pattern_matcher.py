"""Patterns of what to leave out, by the rules that Docker documents for ``.dockerignore`` files."""

from __future__ import annotations

from pathlib import Path

import pytest

from modal_nomad.file_pattern_matcher import FilePatternMatcher, PatternMatcher

# One pattern, what it takes, and what it leaves.
RULES: list[tuple[str, list[str], list[str]]] = [
    # A name is one of the root folder; what lies under a folder that matches goes with it.
    ("notes", ["notes", "notes/a", "notes/a/b.txt"], ["notes.txt", "mynotes", "docs/notes"]),
    ("docs/notes", ["docs/notes", "docs/notes/x"], ["notes", "x/docs/notes", "docs"]),
    ("/notes", ["notes", "notes/a"], ["docs/notes"]),
    ("notes/", ["notes", "notes/a"], ["docs/notes"]),
    ("//docs//notes/", ["docs/notes"], ["notes"]),
    ("./notes", ["notes"], ["docs/notes"]),
    ("docs/../notes", ["notes"], ["docs/notes", "docs"]),
    # A dot is a dot, as is all that a regular expression would take for something else.
    ("a.b", ["a.b"], ["aXb", "ab"]),
    ("a(b)+{c}|$^", ["a(b)+{c}|$^"], ["ab", "a(b)"]),
    ("lib-1.0+local.whl", ["lib-1.0+local.whl"], ["lib-1.00local.whl"]),
    (".*", [".env", ".git/config"], ["env", "a/.env"]),
    # ``*`` and ``?`` stay within one folder.
    ("*", ["a", "a/b", ".hidden"], []),
    ("*.txt", ["a.txt", ".txt"], ["d/a.txt", "a.txt.gz", "txt"]),
    ("*/temp*", ["one/temp", "one/temporary.txt", "one/temp/deep"], ["temp", "one/two/temp"]),
    ("*/*/temp*", ["one/two/temp", "one/two/temporary.txt"], ["one/temp", "1/2/3/temp"]),
    ("temp?", ["tempa", "temp1", "tempa/x"], ["temp", "tempab", "temp/"]),
    ("a?c", ["abc"], ["a/c", "ac"]),
    ("a*c", ["ac", "abc", "abbc"], ["a/c", "ab/c"]),
    # ``**`` is any number of folders, none included.
    ("**", ["a", "a/b/c"], []),
    ("**/*.go", ["a.go", "d/a.go", "d/e/a.go"], ["a.gox", "go"]),
    ("**/notes", ["notes", "d/notes", "d/e/notes/x"], ["mynotes", "d/mynotes"]),
    ("**/.env", [".env", "d/.env"], ["a.env", "d/a.env"]),
    ("**/d/x", ["d/x", "a/d/x", "a/b/d/x"], ["x", "d/y"]),
    # Without a slash after it, and with nothing special behind it, whatever ends so: as Docker has it.
    ("**notes", ["notes", "d/notes", "mynotes", "d/mynotes/x"], ["notesx", "d/notes.txt"]),
    ("**note?", ["notes", "d/notes"], ["mynotes"]),
    ("**/a*b", ["ab", "d/axb", "d/e/ab"], ["a/b"]),
    ("**/**/*.txt", ["a.txt", "d/a.txt", "d/e/f/a.txt"], ["a.txt2"]),
    ("d/**", ["d/a", "d/a/b"], ["d", "e/a"]),
    ("d/**/x", ["d/x", "d/a/x", "d/a/b/x"], ["x", "dx", "d/xy"]),
    ("d/**/*.py", ["d/a.py", "d/e/f/a.py"], ["a.py", "d/a.pyc"]),
    ("d**/*.txt", ["d/a.txt", "d/e/a.txt"], ["a.txt"]),
    ("d/*.txt**", ["d/a.txt", "d/a.txt.gz"], ["d/e/a.txt"]),
    # Classes of characters.
    ("[a-c]x", ["ax", "cx"], ["dx", "x", "abx"]),
    ("[abz]x", ["ax", "zx"], ["cx"]),
    ("[^a-c]x", ["dx", "-x"], ["ax", "x"]),
    ("[c-a]x", [], ["ax", "bx", "cx"]),
    (r"[\]a]x", ["]x", "ax"], ["bx"]),
    ("a[b-d]e", ["abe", "ade"], ["ae", "aae", "a/e"]),
    ("a[^x]b", ["ayb", "a/b"], ["axb"]),
    # A backslash takes what follows as it is.
    (r"a\*", ["a*"], ["ab", "a"]),
    (r"\[a]", ["[a]"], ["a"]),
    (r"\!keep", ["!keep"], ["keep"]),
    # Space around a pattern is not part of it.
    ("  a b  ", ["a b"], ["a", " a b"]),
    ("? /", ["a", "a/b"], ["a ", "ab"]),
    # A pattern that names the root says nothing.
    (".", [], ["a", ".a"]),
    ("/", [], ["a"]),
]


@pytest.mark.parametrize(("pattern", "taken", "left"), RULES, ids=[repr(rule[0]) for rule in RULES])
def test_one_pattern(pattern: str, taken: list[str], left: list[str]) -> None:
    matcher = FilePatternMatcher(pattern)
    assert [path for path in taken if not matcher(Path(path))] == []
    assert [path for path in left if matcher(Path(path))] == []
    inverse = ~matcher
    assert [path for path in left if not inverse(Path(path))] == []
    assert all((~inverse)(Path(path)) for path in taken)


@pytest.mark.parametrize(
    ("patterns", "taken", "left"),
    [
        ([], [], ["a", "a/b"]),
        (["", "  "], [], ["a"]),
        (["a", "b"], ["a", "b/x"], ["c"]),
        (["*.md", "!README.md"], ["a.md"], ["README.md", "d/a.md"]),
        (
            ["*.md", "!README*.md", "README-secret.md"],
            ["a.md", "README-secret.md"],
            ["README.md", "README-1.md"],
        ),
        (["*.md", "README-secret.md", "!README*.md"], ["a.md"], ["README.md", "README-secret.md"]),
        (["!keep", "*"], ["keep"], []),
        (["*", "!keep"], ["drop", "drop/keep"], ["keep", "keep/all"]),
        (["d", "!d/keep", "d/keep/not"], ["d/a", "d", "d/keep/not"], ["d/keep", "d/keep/x"]),
        (["**", "!**/*.py"], ["a", "d/a.txt"], ["a.py", "d/a.py"]),
        (["*", "! keep"], ["drop"], ["keep"]),
    ],
)
def test_the_last_pattern_that_matches_decides(
    patterns: list[str], taken: list[str], left: list[str]
) -> None:
    matcher = FilePatternMatcher(*patterns)
    assert [path for path in taken if not matcher(Path(path))] == []
    assert [path for path in left if matcher(Path(path))] == []


@pytest.mark.parametrize("pattern", ["!", " ! ", "!/", "[", "[]", "[a", "[^", "[-x]", "[x-]", "a\\"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        FilePatternMatcher(pattern)


def test_patterns_from_a_file_are_read_late(tmp_path: Path) -> None:
    matcher = FilePatternMatcher.from_file(tmp_path / "ignore")
    (tmp_path / "ignore").write_text("# no\n*.txt\n!keep.txt\n")
    assert matcher(Path("a.txt")) and not matcher(Path("keep.txt")) and not matcher(Path("# no"))


def test_a_file_of_patterns_without_an_end_of_line(tmp_path: Path) -> None:
    (tmp_path / "ignore").write_bytes(b"\xef\xbb\xbf*.txt\r\n\r\n  !keep.txt  ")
    matcher = FilePatternMatcher.from_file(str(tmp_path / "ignore"))
    assert matcher(Path("a.txt")) and not matcher(Path("keep.txt"))


def test_lines_of_a_file_end_with_nothing_but_a_line_feed(tmp_path: Path) -> None:
    (tmp_path / "ignore").write_text("one\x0btwo\u2028three\r\nfour\n", encoding="utf-8")
    matcher = FilePatternMatcher.from_file(tmp_path / "ignore")
    assert matcher(Path("one\x0btwo\u2028three")) and matcher(Path("four")) and not matcher(Path("two"))


def test_a_file_that_is_not_there_is_told_on_first_use(tmp_path: Path) -> None:
    matcher = ~FilePatternMatcher.from_file(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        matcher(Path("a"))


def test_the_base_class_matches_nothing_by_itself() -> None:
    with pytest.raises(TypeError, match=r"use modal\.FilePatternMatcher"):
        PatternMatcher()(Path("a"))
