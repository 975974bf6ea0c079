"""What Spaces runs: settings → Studio → page → launch."""

from studio.settings import load_settings
from studio.ui.app import serve

if __name__ == "__main__":
    serve(load_settings())
