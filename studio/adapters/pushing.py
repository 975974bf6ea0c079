"""An adapter goes to a repository of the Hugging Face Hub, with its card."""

from pathlib import Path

from storage import files
from studio.adapters.exporting import Exporter, Wish, untold
from studio.adapters.merged import Tell
from studio.bases.sources import HUB_ID
from studio.errors import BaseUnavailable, InvalidInput, NotFound, StudioError
from studio.settings import hub_token


class Pusher:
    """Pushes what an exporter writes.

    Args:
        exporter: writes the files. endpoint: another Hub than the one that huggingface_hub knows.
    """

    def __init__(self, exporter: Exporter, endpoint: str | None = None) -> None:
        self.exporter, self.endpoint = exporter, endpoint

    def push(
        self, name_or_id: str, repository: str, *, public: bool = False, wish: Wish | None = None, tell: Tell = untold, token: str = ""
    ) -> str:
        """Make the repository where it is missing, and commit the files; returns the commit's address.

        The token is the one that is given, or that of the environment variable HF_TOKEN; it is never written down. A repository that is
        there stays as public or private as it is.

        Raises:
            NotFound. InvalidInput: no Hub id, no token, or one that may not write there. BaseUnavailable: the Hub does not answer. Else as
            `Exporter.write`.
        """
        if not HUB_ID.fullmatch(repository):
            raise InvalidInput(f"{repository!r} is no Hub id; write it as owner/name.")
        token = token or hub_token()
        if not token:
            raise InvalidInput(
                "There is no token for the Hub; set HF_TOKEN to one that may write, of huggingface.co/settings/tokens, or type one."
            )
        record = self.exporter.catalog.get(name_or_id)
        with files.staging_folder(self.exporter.folder) as staging:
            self.exporter.fill(record, wish or Wish(), staging, tell)
            tell(1.0, f"sending it to {repository}")
            return self._send(staging, repository, public, token, record.name)

    def _send(self, folder: Path, repository: str, public: bool, token: str, name: str) -> str:
        from httpx2 import HTTPError, InvalidURL  # what huggingface_hub 2 speaks HTTP with
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        client = HfApi(endpoint=self.endpoint, token=token)
        try:
            client.create_repo(repository, private=not public, exist_ok=True)
            done = client.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Add {name}")
        except HfHubHTTPError as error:
            raise _refusal(error.response.status_code if error.response is not None else 0, repository) from None
        except (HTTPError, InvalidURL, OSError, ValueError, RuntimeError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:160].replace(token, "…").rstrip(".")
            raise BaseUnavailable(f"The Hub did not take the files ({why}). Check the network and try again.") from None
        return str(done.commit_url)


def _refusal(status: int, repository: str) -> StudioError:
    if status in (401, 403):
        return InvalidInput(f"The Hub refused to write to {repository!r} ({status}); check that the token is valid and may write there.")
    if status == 404:
        return NotFound(f"The Hub knows no owner of {repository!r} that the token may write for; check the name.")
    return BaseUnavailable(f"The Hub did not take the files for {repository!r} (status {status}). Try again later.")
