"""The tests, a folder for every room of the program."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
