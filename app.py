"""What Spaces runs: settings → Studio → page → launch."""

import sys

from studio.errors import StudioError
from studio.settings import load_settings

if __name__ == "__main__":
    try:
        settings = load_settings()
        from studio.ui.app import serve  # Gradio reads the environment that the settings complete

        serve(settings)
    except StudioError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(2)
