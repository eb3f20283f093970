"""What a compressed model costs where it runs: time, tokens a second, memory, bytes moved; in torch and in ONNX."""
