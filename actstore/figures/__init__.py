"""Tables and figures: what analyses compute, and how it is drawn and shown."""
