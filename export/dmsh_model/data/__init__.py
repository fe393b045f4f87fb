"""Labelled images by name: folders, MNIST-5k, CIFAR-10, list files and .npz files; never a download."""
