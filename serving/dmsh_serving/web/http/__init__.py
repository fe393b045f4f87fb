"""What crosses HTTP: who may ask, what a request says, how an error is told."""
