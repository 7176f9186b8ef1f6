"""``python -m lengthwise``: the command line."""

from lengthwise.training.cli import app

if __name__ == "__main__":
    app(prog_name="lengthwise")
