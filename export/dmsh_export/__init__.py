"""From checkpoint to artefacts, and the proofs that no bit of any code changed on the way."""
