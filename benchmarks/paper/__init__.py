"""The paper's claim, measured: does fusing scales retrieve better than the last one?"""
