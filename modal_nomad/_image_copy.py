"""The ``copy_...`` steps of an Image: older forms of ``add_local_...(copy=True)``."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ._image_files import LocalFiles
from ._options import warn_deprecated
from .exception import InvalidError
from .file_pattern_matcher import as_matcher

if TYPE_CHECKING:
    from .mount import Mount
    from .wire.spec import ImageSpec

T = TypeVar("T", bound="CopySteps")


class CopySteps:
    """Gives an Image its older ways to copy local files. Relative paths are meant from its ``workdir``."""

    _spec: ImageSpec

    def _add_local(self: T, name: str, wishes: list[LocalFiles], copy: bool) -> T:
        raise NotImplementedError

    def copy_mount(self: T, mount: Mount, remote_path: str | Path = ".") -> T:
        """Deprecated: use ``add_local_dir(..., copy=True)``.

        Args:
            mount: whose files are copied.
            remote_path: the directory that they are copied into.

        Raises:
            InvalidError: for something else than a Mount.
        """
        from .mount import Mount

        warn_deprecated("Image.copy_mount is deprecated: use Image.add_local_dir(..., copy=True)")
        if not isinstance(mount, Mount):
            raise InvalidError(f"copy_mount got {mount!r}; give a modal.Mount, or use add_local_dir")
        return self._add_local("copy_mount", list(mount._below(self._place(remote_path))), True)

    def copy_local_file(self: T, local_path: str | Path, remote_path: str | Path = "./") -> T:
        """Deprecated: use ``add_local_file(..., copy=True)``.

        Args:
            local_path: the file.
            remote_path: where it goes; into a directory, where it ends in a slash or a dot.
        """
        warn_deprecated("Image.copy_local_file is deprecated: use Image.add_local_file(..., copy=True)")
        place = self._place(remote_path)
        if str(remote_path).endswith("/") or posixpath.basename(str(remote_path)) in (".", ".."):
            place = posixpath.join(place, Path(local_path).name)
        return self._add_local("copy_local_file", [LocalFiles("file", str(local_path), place)], True)

    def copy_local_dir(
        self: T,
        local_path: str | Path,
        remote_path: str | Path = ".",
        ignore: Sequence[str] | Callable[[Path], bool] = (),
    ) -> T:
        """Deprecated: use ``add_local_dir(..., copy=True)``.

        Args:
            local_path: the directory, whose content is copied.
            remote_path: where it goes.
            ignore: as for ``add_local_dir``.
        """
        warn_deprecated("Image.copy_local_dir is deprecated: use Image.add_local_dir(..., copy=True)")
        wish = LocalFiles("dir", str(local_path), self._place(remote_path), as_matcher(ignore))
        return self._add_local("copy_local_dir", [wish], True)

    def _place(self, remote_path: Any) -> str:
        if not isinstance(remote_path, (str, Path)):
            raise InvalidError(f"the remote path is {remote_path!r}; give a string such as '/assets'")
        return posixpath.normpath(posixpath.join(self._spec.workdir or "/", str(remote_path)))
