"""``python -m lengthwise``: the command line."""

from lengthwise.training.cli.app import app

if __name__ == "__main__":
    app(prog_name="lengthwise")
