"""The parts that both command lines share: options, output, errors as messages."""
