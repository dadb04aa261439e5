"""Model folders on the Hugging Face Hub, as hf://USER/NAME or hf://USER/NAME@REVISION: a branch, a tag or a commit.

By `huggingface_hub`, imported where it is used: its cache (HF_HOME), its token (HF_TOKEN, `hf auth login`), its
endpoint (HF_ENDPOINT); with HF_HUB_OFFLINE=1 from the cache alone. Ours, not its ModelHubMixin: that writes and reads a
config.json of its own, with the arguments of a constructor, where a model folder has the record of a run; and it would
be a base class of Embedder, which has to load without huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from unfused_fast.errors import UserError, cause
from unfused_fast.optional import importing

FILES = ("config.json", "model.safetensors", "README.md")
"""Of a model folder. Nothing else of a repository is downloaded."""
_NAME = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class HubName(NamedTuple):
    """What hf://USER/NAME@REVISION names."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + ("" if self.revision is None else f"@{self.revision}")


def is_hub(name: str | Path) -> bool:
    """Whether this names something on the Hub. A Path has one slash less."""
    return str(name).startswith("hf:/")


def hub_name(name: str | Path) -> HubName:
    """Raises UserError for anything that does not name a model."""
    found = _NAME.fullmatch(str(name))
    if found is None or found[1].startswith("datasets/"):
        raise UserError(f"{name}: want hf://USER/NAME or hf://USER/NAME@REVISION of a model on the Hugging Face Hub")
    return HubName(found[1], found[2])


@cache
def hub_folder(name: str) -> Path:
    """The model folder that hf://... names, in the cache, whose last part is the commit; downloaded if it is not there.
    Once in a process, so that a branch does not move under a command.

    Raises:
        UserError: no such model or revision, none of unfused-fast, no network and no copy, or no huggingface_hub.
    """
    wanted = hub_name(name)
    with _explained(wanted):
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                wanted.repository, revision=wanted.revision, allow_patterns=list(FILES), library_name="unfused-fast"
            )
        )
    if lacking := [file for file in FILES[:2] if not (folder / file).is_file()]:
        raise UserError(f"{wanted}: no model of unfused-fast: it has no {' and no '.join(lacking)}; name another")
    return folder


def pinned(name: str) -> str:
    """hf://USER/NAME with the commit that is used in place of a branch or tag, for records. Raises as hub_folder."""
    return str(HubName(hub_name(name).repository, hub_folder(str(name)).name))


def push_folder(folder: Path, name: str, message: str, private: bool | None = None) -> str:
    """Uploads a model folder as one commit to hf://USER/NAME, which is made if it is not there, or to a branch of it.

    Args:
        private: of a new repository; None: as the account has it.

    Returns:
        The commit's address.

    Raises:
        UserError: no right to write there, no network, or no huggingface_hub.
    """
    wanted = hub_name(name)
    with _explained(wanted):
        from huggingface_hub import HfApi

        api = HfApi(library_name="unfused-fast")
        api.create_repo(wanted.repository, private=private, exist_ok=True)
        if wanted.revision is not None:
            api.create_branch(wanted.repository, branch=wanted.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=wanted.repository,
            folder_path=folder,
            revision=wanted.revision,
            commit_message=message,
            allow_patterns=list(FILES),
        )
    return str(done.commit_url)


@contextmanager
def _explained(wanted: HubName) -> Iterator[None]:
    """Around calls of huggingface_hub, whose errors become sentences."""
    with importing("huggingface_hub", "huggingface_hub", f"{wanted}", "pip install '.[hub]'"):
        from huggingface_hub import errors
    network: Any = errors.HfHubHTTPError.__mro__[1]  # of httpx, httpx2 or requests, by version
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{wanted}: no such revision; name a branch, a tag or a commit, or leave it out") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{wanted}: not on the Hub, or not for you; check the name, or log in by `hf auth login` or HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{wanted}: the Hub does not answer, and the cache has no copy; download it once while online "
            "(HF_HUB_OFFLINE unset), or take a model folder"
        ) from error
    except (OSError, ValueError, network) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{wanted}: no right to do this ({status}); log in by `hf auth login` or HF_TOKEN"
            ) from error
        said = next(iter(str(error).strip().splitlines()), "") or cause(error)
        raise UserError(f"{wanted}: {said[:300]}; try again, or take a model folder") from error
