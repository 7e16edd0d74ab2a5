"""File names of records: no two names share one, and each tells its name."""

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.store.directory import is_shortened, name_of, stem_of

NAMES = st.text(min_size=1, max_size=512) | st.text("aA%~./-", min_size=1, max_size=12)


@given(NAMES)
def test_a_stem_is_a_plain_file_name(name: str) -> None:
    stem = stem_of(name)
    assert stem.isascii()
    assert stem == stem.lower()
    assert not stem.startswith(".")
    assert "/" not in stem
    assert len(f"{stem}.{2**32}.held") <= 255


@given(NAMES)
def test_a_stem_tells_its_name_unless_it_is_shortened(name: str) -> None:
    stem = stem_of(name)
    assert is_shortened(stem) or name_of(stem) == name


@given(NAMES, NAMES)
def test_no_two_names_share_a_stem(one: str, other: str) -> None:
    assert (stem_of(one) == stem_of(other)) == (one == other)


def test_names_stay_readable() -> None:
    assert stem_of("acme/api.example.com") == "acme%2fapi.example.com"
    assert stem_of("acme/*.Example.com") == "acme%2f%2a.%45xample.com"
    assert stem_of("..") == "%2e."


def test_files_that_no_name_has() -> None:
    for stem in ("README", "a%2Fb", "%61", "a b", ".hidden", "%ff", "\udcff", "ä"):
        assert name_of(stem) is None
