"""Images to codes from one ONNX file, which says what it is and is checked by its known answer when it loads."""
