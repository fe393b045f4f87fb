"""Float checkpoint -> integer checkpoint: calibration, scales, rounding, and a measurement of what it costs.

Spelling: files, folders and functions say ``quantise``, as the prose does. ``quantize`` appears in one public name
only, the command ``dmsh-export quantize``, beside operators of other projects such as ``QuantizeLinear``.
"""
