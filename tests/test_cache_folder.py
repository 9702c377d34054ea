"""Where what is computed once is kept: the folder of a setting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from brewer_core.cache_folder import cache_root

OF_USER = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"


def test_off_is_no_folder(tmp_path: Path) -> None:
    assert cache_root("off", tmp_path) is None


def test_a_path_is_relative_to_the_folder_of_the_config(tmp_path: Path) -> None:
    assert cache_root("kept/here", tmp_path) == tmp_path / "kept" / "here"
    assert cache_root(str(tmp_path / "there"), Path("elsewhere")) == tmp_path / "there"


def test_auto_is_the_folder_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OF_USER, str(tmp_path / "caches"))
    monkeypatch.setenv("BREWER_CACHE", str(tmp_path / "own"))
    assert cache_root("auto", Path("elsewhere")) == tmp_path / "own"
    for unset in (lambda: monkeypatch.setenv("BREWER_CACHE", ""), lambda: monkeypatch.delenv("BREWER_CACHE")):
        unset()
        assert cache_root("auto", Path("elsewhere")) == tmp_path / "caches" / "brewer"


@pytest.mark.skipif(os.name == "nt", reason="Windows names the folder for caches")
def test_auto_is_in_the_home_of_the_user_without_a_folder_for_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BREWER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root("auto", Path("elsewhere")) == tmp_path / ".cache" / "brewer"


@pytest.mark.skipif(os.name == "nt", reason="users of Windows have a home")
def test_a_user_without_a_home_has_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.delenv("BREWER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    unknown = max(user.pw_uid for user in pwd.getpwall()) + 1
    monkeypatch.setattr(os, "getuid", lambda: unknown)
    assert cache_root("auto", Path("elsewhere")) is None


def test_tests_leave_the_cache_of_the_user_alone() -> None:
    assert Path.home() not in [Path(os.environ["BREWER_CACHE"]), *Path(os.environ["BREWER_CACHE"]).parents]
