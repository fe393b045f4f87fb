"""What Triton runs (decoder, encoder, ranker) and the model repository that describes it."""
