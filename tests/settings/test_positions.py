"""The scanner finds the line of every key, whatever the text around it looks like."""

import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tlsproxy.settings.positions import Lines, Path, scan_positions

TRICKY = '''# [not.a.table] key = "x"
a = """
b = 1
[no]
\\""" still"""""
"quoted.key" = 'it # is [not]'
x.y . z = [ # comment ]
  1, [ "]", 'b' ],
  { k = "}", "l m" = [2] },
]
[t]
v = true
[[sites]]
hosts = ["a"]
[sites.sub]
w = 1
[[sites.routes]]
path = "/"
[[sites]]
routes = [{ path = "/x" }]
[sites.sub]
w = 2
'''


def test_a_tricky_text() -> None:
    tomllib.loads(TRICKY)
    lines = scan_positions(TRICKY)
    assert {
        ("a",): 2,
        ("quoted.key",): 6,
        ("x",): 7,
        ("x", "y", "z"): 7,
        ("x", "y", "z", 0): 8,
        ("x", "y", "z", 1, 1): 8,
        ("x", "y", "z", 2, "k"): 9,
        ("x", "y", "z", 2, "l m", 0): 9,
        ("t",): 11,
        ("t", "v"): 12,
        ("sites",): 13,
        ("sites", 0): 13,
        ("sites", 0, "hosts", 0): 14,
        ("sites", 0, "sub", "w"): 16,
        ("sites", 0, "routes", 0, "path"): 18,
        ("sites", 1): 19,
        ("sites", 1, "routes", 0, "path"): 20,
        ("sites", 1, "sub", "w"): 22,
    }.items() <= lines.items()
    assert ("b",) not in lines
    assert ("no",) not in lines


def test_the_nearest_enclosing_place_answers() -> None:
    lines = Lines(TRICKY)
    assert lines.find(("sites", 1, "backends", 3)) == 19
    assert lines.find(("nowhere", "at", "all")) is None


def test_windows_line_ends_count_once() -> None:
    assert scan_positions("a = 1\r\n\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("b", "c"): 4}


@given(st.text(alphabet="[]{}=.,#\"'\\\n\r ab1", max_size=60))
def test_any_text_is_survived(text: str) -> None:
    scan_positions(text)


# --- generated documents, written with their places

KEYS = st.text(alphabet="abc-_09 .'\"#=[]é", min_size=1, max_size=6)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
LEAVES = st.one_of(
    st.integers(-99, 99), st.booleans(), TEXTS, st.sampled_from(["'''", "[x]\ny = 1\n", '"""\n#', "a\\"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=2)), max_leaves=6
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)
NOISE = st.lists(st.sampled_from(["", "# [[sites]]", '\t# x = """', "  "]), max_size=2)


class Writer:
    """Writes TOML line by line and remembers on which line it put what."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.lines: dict[Path, int] = {}

    def add(self, path: Path, text: str) -> None:
        self.lines[path] = len(self.rows) + 1
        self.rows += text.split("\n")

    def table(self, path: Path, table: dict[str, Any], draw: st.DrawFn) -> None:
        for key, value in table.items():
            self.rows += draw(NOISE)
            self.add((*path, key), f"{self.quoted(key)} = {self.written(value, draw)}  # end")

    def written(self, value: Any, draw: st.DrawFn) -> str:
        if isinstance(value, list):
            gap = draw(st.sampled_from(["", "\n", " # ]\n"]))
            return "[" + gap + f",{gap}".join(self.written(item, draw) for item in value) + gap + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.quoted(k)} = {self.inline(v)}" for k, v in value.items()) + "}"
        if (
            isinstance(value, str)
            and "\r" not in value
            and "'''" not in value
            and not value.endswith("'")
            and draw(st.booleans())
        ):
            return f"'''\n{value}'''"
        return self.inline(value)

    def inline(self, value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(self.inline, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.quoted(k)} = {self.inline(v)}" for k, v in value.items()) + "}"
        return self.quoted(value) if isinstance(value, str) else json.dumps(value)

    @staticmethod
    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[Path, int]]:
    writer = Writer()
    top, section, sites = (
        draw(TABLES),
        draw(TABLES),
        draw(st.lists(st.tuples(TABLES, st.lists(TABLES, max_size=2)), max_size=3)),
    )
    writer.table((), top, draw)
    data: dict[str, Any] = {**top, "the section": section}
    writer.add(("the section",), '[ "the section" ]')
    writer.table(("the section",), section, draw)
    for index, (site, routes) in enumerate(sites):
        writer.add(("sites", index), "[[sites]]")
        writer.table(("sites", index), site, draw)
        for number, route in enumerate(routes):
            writer.add(("sites", index, "the routes", number), "[[sites . 'the routes']]")
            writer.table(("sites", index, "the routes", number), route, draw)
        data.setdefault("sites", []).append({**site, **({"the routes": routes} if routes else {})})
    return "\n".join(writer.rows), data, writer.lines


@settings(max_examples=60)
@given(documents())
def test_every_key_is_found_on_its_line(document: tuple[str, dict[str, Any], dict[Path, int]]) -> None:
    text, data, expected = document
    assert tomllib.loads(text) == data
    found = scan_positions(text)
    assert {path: found.get(path) for path in expected} == expected
