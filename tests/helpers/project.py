"""Where the project's own files are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO_CHECKPOINT = ROOT / "demo" / "checkpoint"
