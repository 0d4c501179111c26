"""What both command lines share: options, output, and errors as messages."""
