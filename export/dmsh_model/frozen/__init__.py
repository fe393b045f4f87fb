"""Training on a trunk that stays as it is: its pooled features are computed once, the head learns from them."""
