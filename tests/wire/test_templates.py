from __future__ import annotations

import time
from typing import Any

import pytest

from tlsproxy.wire.templates import LONGEST_TEMPLATE, MOST_TEMPLATES, Templates, is_template, read_openapi

PATHS = (
    "/",
    "/items",
    "/items/",
    "/items/{item_id}",
    "/items/new",
    "/items/{item_id}/parts/{part}",
    "/users/{user}/items",
    "/users/me/settings",
    "/reports/{name}.json",
    "/reports/{day}-{hour}.csv",
    "/files/{path}",
    "/grüße/{name}",
    "/a b",
)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        (b"/", "/"),
        (b"/items", "/items"),
        (b"/items/", "/items/"),
        (b"/items/5", "/items/{item_id}"),
        (b"/items/%2F5", "/items/{item_id}"),
        (b"/items/new", "/items/new"),
        (b"/items/5/parts/6", "/items/{item_id}/parts/{part}"),
        (b"/items/new/parts/6", "/items/{item_id}/parts/{part}"),  # the literal leads nowhere
        (b"/users/me/items", "/users/{user}/items"),
        (b"/users/me/settings", "/users/me/settings"),
        (b"/reports/may.json", "/reports/{name}.json"),
        (b"/reports/.json", "other"),
        (b"/reports/1-2.csv", "/reports/{day}-{hour}.csv"),
        (b"/gr%C3%BC%C3%9Fe/you", "/gr%C3%BC%C3%9Fe/{name}"),
        (b"/a%20b", "/a%20b"),
        (b"/nothing", "other"),
        (b"/users/me", "other"),
        (b"//items", "other"),
        (b"", "other"),
        (b"*", "other"),
        (b"/items" * 40, "other"),
    ],
)
def test_a_path_has_the_template_it_fits(path: bytes, template: str) -> None:
    templates = Templates(PATHS)
    assert [templates.find(path, 404) for _ in range(2)] == [template] * 2


def test_a_last_parameter_takes_more_than_a_segment_if_the_application_did() -> None:
    templates = Templates(PATHS)
    assert templates.find(b"/files/a/b/c", 200) == "/files/{path}"
    assert templates.find(b"/files/a/b/c", 404) == "other"
    assert templates.find(b"/files/" + b"a/" * 200, 200) == "/files/{path}"
    assert templates.find(b"/nothing/a/b", 200) == "other"


def test_what_stands_before_all_paths_is_part_of_the_template() -> None:
    templates = Templates(["/items/{i}"], b"/api/v1")
    assert templates.find(b"/api/v1/items/5") == "/api/v1/items/{i}"
    assert templates.find(b"/items/5") == "/api/v1/items/{i}"  # the application takes it with and without
    assert templates.find(b"/api/v1x/items/5") == "other"


def test_it_is_bounded() -> None:
    assert Templates(f"/{number}/{{x}}" for number in range(MOST_TEMPLATES * 2)).count == MOST_TEMPLATES
    assert Templates(["/" + "a" * LONGEST_TEMPLATE, '/"', "/\n", "/" + "{x}/" * 100]).count == 2  # quoted: /%22, /%0A
    templates = Templates(PATHS)
    for number in range(5000):
        templates.find(b"/items/%d" % number)
    assert len(templates._memory) <= 1024
    before = len(templates._memory)
    templates.find(b"/items/" + b"x" * 1000)
    assert len(templates._memory) == before


def test_no_path_takes_more_steps_than_the_tree_has_nodes() -> None:
    """A tree in which every segment could go two ways at every depth."""
    names = [""]
    for _ in range(9):
        names = [name + part for name in names for part in ("/a", "/{x}")]
    templates = Templates(names[:MOST_TEMPLATES])
    started = time.process_time()
    for number in range(50):
        assert templates.find(b"/a" * 8 + b"/" + b"/%d" % number * 20, 404) == "other"
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("value", [b"items", b"", b"/a b", b'/"', b"/a\\", b"/\xc3\xbc", b"/a\r\nb", b"/" * 300])
def test_what_is_no_template_is_not_shown(value: bytes) -> None:
    assert is_template(value) == ""


class TestOpenapi:
    @pytest.mark.parametrize("document", [None, [], "x", 5, {}, {"paths": []}, {"paths": None}])
    def test_what_is_no_document_has_none(self, document: Any) -> None:
        assert read_openapi(document, b"", stripped=False) is None

    def test_odd_paths_are_left_out(self) -> None:
        templates = read_openapi({"paths": {"/a": {}, "b": {}, "/\ud800": {}}}, b"", stripped=False)
        assert templates is not None
        assert templates.find(b"/a") == "/a"
        assert templates.find(b"/b") == "other"

    def test_a_stripped_prefix_comes_before_it(self) -> None:
        document = {"paths": {"/items/{i}": {}}, "servers": [{"url": "/api/v1"}]}
        templates = read_openapi(document, b"/api/v1", stripped=True)
        assert templates is not None
        assert templates.find(b"/api/v1/items/5") == "/api/v1/items/{i}"

    @pytest.mark.parametrize("url", ["/api/v1", "/api/v1/", "https://api.test/api/v1"])
    def test_else_the_root_path_is_what_the_application_says(self, url: str) -> None:
        templates = read_openapi({"paths": {"/items/{i}": {}}, "servers": [{"url": url}]}, b"/api", stripped=False)
        assert templates is not None
        assert templates.find(b"/api/v1/items/5") == "/api/v1/items/{i}"

    @pytest.mark.parametrize("servers", [None, [], [5], [{}], [{"url": 5}], [{"url": "http://[x"}], [{"url": "/"}]])
    def test_or_its_paths_are_whole(self, servers: Any) -> None:
        templates = read_openapi({"paths": {"/api/items/{i}": {}}, "servers": servers}, b"/api", stripped=False)
        assert templates is not None
        assert templates.find(b"/api/items/5") == "/api/items/{i}"
