"""One Triton server process: found, checked, started, watched and stopped."""
